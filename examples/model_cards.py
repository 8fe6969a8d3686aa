"""Write the card of each recipe family (a network on a data set) from measured results.

python examples/model_cards.py                        # all "not measured yet"
python examples/model_cards.py outputs --output_dir model_cards

Reads every results.json of examples/image_classification.py in the given files and folders. A recipe without a result
says "not measured yet"; a result that departs from its recipe (fewer epochs, a part of the data, ...) says in what.
"""

import argparse
import sys
from pathlib import Path

from hf_amp.vision.family_cards import find_results, write_family_cards


def main(argv: list[str] | None = None) -> list[Path]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="*", help="results.json files, or folders that hold some.")
    parser.add_argument("--output_dir", type=Path, default=Path("model_cards"), help="Where the cards go.")
    args = parser.parse_args(argv)
    try:
        written = write_family_cards(args.output_dir, find_results(args.results))
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(f"{len(written)} cards are in {args.output_dir}")
    return written


if __name__ == "__main__":
    main()
