"""Print the lower bounds of pyproject.toml's requirements as pip constraints, `name==version`."""

import re
from pathlib import Path

import tomllib

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
requirements = [*project["dependencies"], *project["optional-dependencies"]["test"]]
requirements += project["optional-dependencies"]["vision"]
for requirement in requirements:
    if bound := re.fullmatch(r"([\w-]+)>=([\w.]+)", requirement):
        print(f"{bound[1]}=={bound[2]}")
