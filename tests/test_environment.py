"""The versions and the hardware that a result names."""

import json

from hf_amp.hub.environment import environment


def test_environment_names_versions_and_hardware():
    facts = environment(processes=2)
    assert {"python", "torch", "transformers", "accelerate", "hf-amp"} <= set(facts["versions"])
    assert facts["hardware"]["processes"] == 2
    json.dumps(facts)
