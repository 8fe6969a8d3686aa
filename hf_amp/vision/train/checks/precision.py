"""What the passes of a training compute in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from hf_amp.vision.train.arguments import ImageTrainingArguments


def choose_precision(args: ImageTrainingArguments) -> tuple[bool, bool, str]:
    """Return whether passes run in bf16, whether in fp16, and why.

    Raises:
        ValueError: `precision`, `bf16` and `fp16` contradict each other.
    """
    if args.bf16 and args.fp16:
        raise ValueError("`bf16`=True and `fp16`=True contradict each other; leave one of them out")
    asked = "bf16" if args.bf16 else "fp16" if args.fp16 else None
    pays = bf16_pays(args.use_cpu)
    if args.precision == "auto" and asked is None:
        why = "this device computes with it" if pays else "bf16 would not be faster on this device"
        return pays, False, f"{why}; --precision chooses"
    if args.precision not in ("auto", asked) and asked is not None:
        raise ValueError(
            f"`precision`={args.precision!r} and `{asked}`=True contradict each other; leave one of them out"
        )
    chosen = asked or args.precision
    faster = pays and chosen == "float32"
    return chosen == "bf16", chosen == "fp16", "as asked" + ("; bf16 would be faster here" if faster else "")


def bf16_pays(use_cpu: bool) -> bool:
    """Return whether the device trained on multiplies matrices in bf16: new GPUs, CPUs with AMX or AVX-512 BF16."""
    if torch.cuda.is_available() and not use_cpu:
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.6 does not tell
    multiplies = any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16"))
    return (use_cpu or not torch.accelerator.is_available()) and multiplies
