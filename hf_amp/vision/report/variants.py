"""What a comparison compares, and what it chooses on validation images, as the command line writes them."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from hf_amp.vision.train.command_line import typed
from hf_amp.vision.train.images import DataArguments
from hf_amp.vision.train.methods import METHOD_FIELDS, METHODS

# What all runs of a comparison share, or what it decides itself. How the images are augmented may differ.
_SHARED = {f.name for f in fields(DataArguments)} - {"augmentation"} | {"method", "output_dir", "seed", "seeds"}
_FLAGS = {"method": "methods", "seed": "seeds"}


@dataclass(frozen=True)
class Variant:
    """A method with its own settings, written `method` or `method:name=value,name=value`.

    Args:
        method: a key of `METHODS`.
        settings: what only this variant has, as it is written, e.g. `{"num_train_epochs": "80"}`.
    """

    method: str
    settings: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Variant:
        """Read `method` or `method:name=value,…`.

        Raises:
            ValueError: the method is unknown, or a setting is not `name=value`, is repeated, is one that all runs
                share, or is not read by the method.
        """
        method, _, rest = text.partition(":")
        if method not in METHODS:
            raise ValueError(f"`methods` must name some of {', '.join(METHODS)}, got {method!r}; choose one of these")
        settings = {}
        for part in filter(None, rest.split(",")):
            name, equals, value = part.partition("=")
            if not (name and equals and value):
                raise ValueError(
                    f"`methods` must look like amp:amp_epsilon=0.1,amp_every=2, got {text!r}; add name=value"
                )
            if name in _SHARED:
                raise ValueError(
                    f"`methods` {text!r} must not set {name}, which all runs of a comparison share; give it with "
                    f"--{_FLAGS.get(name, name)}"
                )
            if name in settings:
                raise ValueError(f"`methods` {text!r} must give {name} once; leave the other value out")
            if name in METHOD_FIELDS and name not in METHODS[method].fields:
                raise ValueError(f"`methods` {text!r} gives {name}, which {method} does not read; leave it out")
            settings[name] = value
        return cls(method, settings)

    @property
    def label(self) -> str:
        """How the table calls it."""
        settings = ", ".join(f"{name}={value}" for name, value in self.settings.items())
        return METHODS[self.method].label + (f" ({settings})" if settings else "")

    @property
    def folder(self) -> str:
        """How its folder is called."""
        return "_".join((self.method, *(f"{name}={value}" for name, value in self.settings.items()))).replace("/", "-")

    def with_setting(self, name: str, value: str) -> Variant:
        """Return the variant with one more setting."""
        return Variant(self.method, {**self.settings, name: value})


@dataclass(frozen=True)
class Selection:
    """A setting that each variant chooses on the validation images, written `[method:]name=value,value,…`.

    Args:
        name: a field that some method reads.
        values: the candidates.
        method: whose variants alone choose; None: all that read the field.
    """

    name: str
    values: tuple[str, ...]
    method: str | None = None

    @classmethod
    def parse(cls, text: str) -> Selection:
        """Read `name=value,value,…` or `method:name=value,value,…`.

        Raises:
            ValueError: it does not look like that, no such method, or none at all, reads such a field, or a value is
                repeated or not of the field's type.
        """
        name, _, rest = text.partition("=")
        method, colon, after = name.partition(":")
        name = after if colon else name
        values = tuple(filter(None, rest.split(",")))
        if colon and method not in METHODS:
            raise ValueError(f"`select` must name a method before ':', one of {', '.join(METHODS)}, got {method!r}")
        readable = sorted({name for one in ([method] if colon else METHODS) for name in METHODS[one].fields})
        if name not in readable:
            raise ValueError(f"`select` must name one of {', '.join(readable)}, got {name!r}; choose one of these")
        if len(values) < 2:
            raise ValueError(f"`select` must give at least two values to choose from, got {text!r}; add some")
        made = [typed({name: value})[name] for value in values]
        if any(value in made[:i] for i, value in enumerate(made)):
            raise ValueError(f"`select` must not repeat a value, got {text!r}; leave the repeated ones out")
        return cls(name, values, method if colon else None)

    @property
    def text(self) -> str:
        """How it is written."""
        return (f"{self.method}:" if self.method else "") + f"{self.name}={','.join(self.values)}"

    def applies_to(self, variant: Variant) -> bool:
        """Whether the variant chooses it: its method reads the field, and it does not give it itself."""
        fields = METHODS[variant.method].fields if self.method in (None, variant.method) else ()
        return self.name in fields and self.name not in variant.settings
