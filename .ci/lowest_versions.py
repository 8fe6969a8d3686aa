"""Print the lower bounds of pyproject.toml's requirements as pip constraints, `name==version`.

All but torch's: a wheel of torch for CPUs is not to be had in each version. `.ci/older_torch.sh` tries the lowest.
"""

import re
from pathlib import Path

import tomllib

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
requirements = [*project["dependencies"], *project["optional-dependencies"]["test"]]
requirements += project["optional-dependencies"]["vision"]
for requirement in requirements:
    bound = re.fullmatch(r"([\w-]+)>=([\w.]+)", requirement)
    if bound and bound[1] != "torch":
        print(f"{bound[1]}=={bound[2]}")
