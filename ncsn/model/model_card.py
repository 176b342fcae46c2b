"""The model card: a description of a shared model in Markdown.

The metrics come from a report of `ncsn evaluate --json` on the same weights.
"""

import json
import re
from collections.abc import Mapping
from operator import index
from statistics import mean, stdev
from textwrap import fill
from typing import Any
from urllib.parse import quote

import yaml

from ncsn.model.checkpoint_file import weights_fingerprint
from ncsn.model.classes import dotted
from ncsn.model.describe import settings_of
from ncsn.model.labels import numbered_names
from ncsn.model.model import DATA, Model

__all__ = ["card", "loading", "spread"]

CARD = """---
library_name: ncsn
license: unknown # of the weights; yours to choose
tags:
- score-based-generative-modeling
{metadata}---

# {name}

{image}A score model of examples of shape {shape}{data}: {denoiser} around {network}, {parameters:,}
parameters, for noise levels from {high:g} to {low:g}. Its sampler is `{sampler}`, over {levels} levels.
{classes}
```python
import ncsn

model = {load}
x = model.sample(64, seed=0)  # (64, {dimensions}); for images, [0, 1] is the visible range
```

## Metrics

{figures}

## Settings

{fence}yaml
{settings}
{fence}
"""
HUB = {
    "ncsn.data.MNIST": "ylecun/mnist",
    "ncsn.data.FashionMNIST": "zalando-datasets/fashion_mnist",
    "ncsn.data.CIFAR10": "uoft-cs/cifar10",
}  # names of data sets on the Hugging Face Hub
NONE = "None was measured. `ncsn evaluate` measures models of images."


def loading(name: str) -> str:
    """Return the code that loads the file or folder of a name."""
    return f"ncsn.load({json.dumps(name, ensure_ascii=False)})"


def card(
    model: Model, load: str, name: str, report: Mapping[str, Any] | None = None, image: str = ""
) -> str:
    """Return the text of a model card.

    Args:
        model: the model.
        load: the Python code that loads it.
        name: its name.
        report: the content of a file of `ncsn evaluate --json`.
        image: the name of an image of samples next to the card; "" if there is none.

    Raises:
        ValueError: if the report is of another kind, or of other weights, or a part of
            the model cannot be described.
    """
    sections = json.loads(json.dumps(settings_of(model)))  # YAML would mark tuples
    settings, data = sections["hyper_parameters"], sections.get(DATA)
    levels, denoiser = model.schedule.sigmas(), model.denoiser
    network = getattr(denoiser, "network", None) or getattr(denoiser, "energy", denoiser)
    text = yaml.safe_dump(
        {"data": data, "model": settings} if data else {"model": settings}, sort_keys=False
    ).strip()
    # Text from a file must stay within its block; classes are shown by name alone.
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    named = isinstance(data, dict) and dotted(data.get("class_path"))
    trained_on = data["class_path"] if named else None
    classes = numbered_names(model.labels.names, model.classes)
    classes = f"\nIts labels are {inline(classes, 10_000)}.\n" if classes else ""
    metadata = "pipeline_tag: unconditional-image-generation\n" * (len(model.shape) == 3)
    if trained_on in HUB:
        metadata += f"datasets:\n- {HUB[trained_on]}\n"
    return CARD.format(
        name=name,
        metadata=metadata,
        image=f"![Samples]({quote(image)})\n\n" if image else "",
        shape=model.shape,
        data=f", trained on `{trained_on}`" if trained_on else "",
        denoiser=type(denoiser).__name__,
        network=type(network).__name__,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        high=levels.max().item(),
        low=levels.min().item(),
        levels=len(levels),
        classes=classes,
        sampler=str(model.sampler).replace("`", "'"),
        load=load,
        dimensions=", ".join(map(str, model.shape)),
        figures=NONE if report is None else measured(report, weights_fingerprint(denoiser)),
        settings=text,
        fence=fence,
    )


def measured(report: Mapping[str, Any], weights: str) -> str:
    """Return the metrics of a report as a table, if its weights match `weights`."""
    try:
        samples, counts, floor = report["samples"], report["counts"], report["floor"]
        if samples is None or samples["weights"] != weights:
            other = inline(report["judged"])
            raise ValueError(f"--metrics: the report is of other weights: {other}")
        head = f"value, {counts['judged']:,} samples | {counts['floor']:,} held-out images"
        lines = [f"| metric | {head} |", "|---|---|---|"]
        lines += [
            f"| {inline(name)} | {spread(values)} | {floor[name]:.4g} |"
            for name, values in report["figures"].items()
        ]
        if report["bits_per_dim"]:
            bits, error, count = report["bits_per_dim"]
            lines.append(f"| bits/dim | | {bits:.3f} +- {error:.3f} (of {count:,}) |")
        seeds = [index(seed) for seed in samples["seeds"]]
        sampler, data = inline(samples["sampler"]), inline(report["data"])
        features = inline(re.sub(r"[^ ]*/", "", report["features"]))
        classes = f", of {inline(samples['label'])}" if samples.get("label") else ""
        of = f"{counts['judged']:,} samples{classes}, by `{sampler}` over {index(samples['levels'])} levels "
        of += f"from {samples['sigma_max']:g} to {samples['sigma_min']:g}, in "
        of += f"{samples['cost']['NFE']:g} NFE each; seeds: {seeds}. "
        of += f"Held out are {counts['floor']:,} images of the validation split of {data}. Both are compared "
        of += f"with {counts['reference']:,} of its training split, by the features of {features}."
    except (KeyError, TypeError, AttributeError) as error:
        message = "--metrics: not a report of this version of `ncsn evaluate --json`"
        raise ValueError(message) from error
    return "\n".join([*lines, "", fill(of, 120)])


def inline(text: str, most: int = 300) -> str:
    """Return text from a file on one printable line of `most` characters, without Markdown."""
    line = "".join(character if character.isprintable() else " " for character in str(text))
    return " ".join(re.sub(r"[`|\[\]<>]", "'", line).split())[:most]


def spread(values: list[float]) -> str:
    """Return the mean, and the standard deviation if there are several values."""
    return f"{values[0]:.4g}" if len(values) == 1 else f"{mean(values):.4g} +- {stdev(values):.2g}"
