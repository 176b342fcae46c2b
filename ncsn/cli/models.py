"""`ncsn models`: the models that come with the package."""

import json
from argparse import Namespace
from pathlib import Path

from safetensors import safe_open

from ncsn.model.shipped import shipped_models

__all__ = ["run"]


def run(options: Namespace) -> None:
    """Print the name of each model, what it was trained on, its images, sampler and file."""
    models = shipped_models()
    width = max(map(len, models))
    for name, file in models.items():
        print(f"{name:{width}}  {about(file)}\n{'':{width}}  {file}")


def about(file: Path) -> str:
    """Return a line about a model, from the settings in its file."""
    with safe_open(file, framework="numpy") as content:
        settings = json.loads(content.metadata()["ncsn"])
    model, data = settings["hyper_parameters"], settings["datamodule_hyper_parameters"]
    shape = "x".join(map(str, model["shape"]))
    names = [part["class_path"].rpartition(".")[2] for part in (data, model["sampler"])]
    labels = "with labels" if data["init_args"].get("labels") else "without labels"
    return f"{names[0]}, {shape}, {labels}; {names[1]}, {model['schedule']['init_args']['levels']} levels"
