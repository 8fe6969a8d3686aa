"""What the Hub checks in the metadata of a README.md."""

import math
import re

import yaml

WORDS = ("license", "library_name", "pipeline_tag", "license_name", "license_link", "thumbnail")
LISTS = ("tags", "datasets", "base_model", "language", "metrics", "new_version")
REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")


def metadata_of(content):
    """Return the text between the two lines of dashes at the top, or None."""
    found = re.match(r"\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|$)", content, re.DOTALL)
    return None if found is None else found[1]


def read_metadata(content):
    """Return the metadata as a dictionary, empty where there is none that can be read."""
    try:
        data = yaml.safe_load(metadata_of(content) or "")
    except yaml.YAMLError:
        return {}
    return data if isinstance(data, dict) else {}


def check_card(content):
    """Return the errors and the warnings about a card, as texts."""
    text = metadata_of(content)
    if text is None or not text.strip():
        return [], ["empty or missing yaml metadata in repo card"]
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        return [f"YAML Metadata Error: {error}"], []
    if not isinstance(data, dict):
        return ["YAML Metadata Error: the metadata must be a mapping"], []
    return [*_field_errors(data), *_index_errors(data.get("model-index", []))], []


def _field_errors(data):
    errors = [f'"{name}" must be a string' for name in WORDS if not isinstance(data.get(name, ""), str)]
    for name in LISTS:
        value = data.get(name, [])
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(one, str) for one in values):
            errors.append(f'"{name}" must be a string or a list of strings')
        elif name in ("datasets", "base_model"):
            bad = [one for one in values if not REPOSITORY.fullmatch(one)]
            errors += [f'"{name}" with value "{one}" is not valid. Use an id from the Hub.' for one in bad]
    return errors


def _index_errors(index):
    if not isinstance(index, list):
        return ['"model-index" must be an array']
    errors = []
    for i, model in enumerate(index):
        place = f"model-index[{i}]"
        errors += _missing(model, place, "name")
        results = model.get("results") if isinstance(model, dict) else None
        if not isinstance(results, list):
            errors.append(f'"{place}.results" must be an array')
            continue
        for j, result in enumerate(results):
            errors += _result_errors(result, f"{place}.results[{j}]")
    return errors


def _result_errors(result, place):
    if not isinstance(result, dict):
        return [f'"{place}" must be an object']
    errors = _missing(result.get("task"), f"{place}.task", "type")
    errors += _missing(result.get("dataset"), f"{place}.dataset", "type", "name")
    metrics = result.get("metrics")
    if not isinstance(metrics, list) or not metrics:
        return [*errors, f'"{place}.metrics" must be an array that is not empty']
    for k, metric in enumerate(metrics):
        at = f"{place}.metrics[{k}]"
        errors += _missing(metric, at, "type")
        value = metric.get("value") if isinstance(metric, dict) else None
        if value is None:
            errors.append(f'"{at}.value" is required')
        elif isinstance(value, float) and not math.isfinite(value):
            errors.append(f'"{at}.value" must be finite')
    return errors


def _missing(value, place, *names):
    """Return an error for each name that is not a text in the object."""
    if not isinstance(value, dict):
        return [f'"{place}" must be an object']
    errors = []
    for name in names:
        if value.get(name) is None:
            errors.append(f'"{place}.{name}" is required')
        elif not isinstance(value[name], str):
            errors.append(f'"{place}.{name}" must be a string')
    return errors
