"""The examples that need trl or sentence-transformers, run as a user runs them, without a network."""

import pytest
from test_examples import EXAMPLES, FIGURES, run

ARGUMENTS = ("--output_dir", "out", "--max_steps", "2", "--logging_steps", "1", "--report_to", "none", "--use_cpu")
ARGUMENTS += ("--amp_epsilon", "0.05")


@pytest.mark.parametrize("script", ["by_feature/trl_sft_lora.py", "by_feature/sentence_embeddings.py"])
def test_example_runs_logs_the_figures_of_amp_and_is_short(script, tmp_path):
    output = run(script, tmp_path, *ARGUMENTS)
    assert all(f"'{name}'" in output for name in FIGURES)
    assert len((EXAMPLES / script).read_text().splitlines()) < 60
