"""Write a recipe file for every row of the paper's tables, from the one table in `hf_amp.vision.recipes`.

python examples/recipes/generate.py            # writes beside this file
python examples/recipes/generate.py --list     # only prints the names with the published figures
"""

import argparse
from pathlib import Path

from hf_amp.vision.recipes import RECIPES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="Print the recipes and write nothing.")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent, help="Where to write the files.")
    options = parser.parse_args()
    for name, recipe in RECIPES.items():
        if options.list:
            print(f"{name:45} {recipe.published}")
        else:
            (options.folder / f"{name}.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    if not options.list:
        print(f"Wrote {len(RECIPES)} recipes to {options.folder}")


if __name__ == "__main__":
    main()
