"""Networks for small images, as ordinary `transformers` models; importing this registers them with the auto classes.

A folder that `save_pretrained` wrote also holds the code of its network, so that it loads without this package:
`AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True)`. For that, the files of this folder
import only each other, torch and transformers.
"""

from transformers import AutoConfig, AutoModelForImageClassification

from .architectures import ARCHITECTURES, MODEL_NAMES, build_config
from .configuration_preactresnet import PreActResNetConfig
from .configuration_pyramidnet import PyramidNetConfig
from .configuration_vgg import VGGConfig
from .configuration_wideresnet import WideResNetConfig
from .modeling_preactresnet import PreActResNetForImageClassification
from .modeling_pyramidnet import PyramidNetForImageClassification
from .modeling_vgg import VGGForImageClassification
from .modeling_wideresnet import WideResNetForImageClassification

for _config_class, _model_class in (
    (PreActResNetConfig, PreActResNetForImageClassification),
    (VGGConfig, VGGForImageClassification),
    (WideResNetConfig, WideResNetForImageClassification),
    (PyramidNetConfig, PyramidNetForImageClassification),
):
    AutoConfig.register(_config_class.model_type, _config_class, exist_ok=True)
    AutoModelForImageClassification.register(_config_class, _model_class, exist_ok=True)
    _config_class.register_for_auto_class()
    _model_class.register_for_auto_class("AutoModelForImageClassification")

__all__ = [
    "ARCHITECTURES",
    "MODEL_NAMES",
    "PreActResNetConfig",
    "PreActResNetForImageClassification",
    "PyramidNetConfig",
    "PyramidNetForImageClassification",
    "VGGConfig",
    "VGGForImageClassification",
    "WideResNetConfig",
    "WideResNetForImageClassification",
    "build_config",
]
