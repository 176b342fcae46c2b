"""What TensorBoard is given: charts, strips of denoised pictures, walks, and settings beside figures."""

import math
import re
from io import BytesIO
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger
from ncsn.data import Digits, enlarged, tiled, to_pixels, to_unit
from ncsn.evaluation import grids
from ncsn.score import tweedie
from ncsn.training.callbacks import (
    EMA,
    Dashboard,
    DenoisingStrips,
    LossPerLevel,
    SampleGrid,
    Throughput,
)
from ncsn.training.callbacks.dashboard import charts
from ncsn.training.callbacks.logged import show_image
from PIL import Image
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2
from torchvision.transforms.functional import pil_to_tensor

from test_callbacks import Copies, averaged, events, fit
from test_cli import train_small
from test_module import small_module, small_trainer


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """The module and the events of a small run with all that TensorBoard shows, and the copies of its weights."""
    folder = tmp_path_factory.mktemp("shown")
    logger = TensorBoardLogger(folder, name="run", default_hp_metric=False)
    validation = {"check_val_every_n_epoch": None, "val_check_interval": 3, "limit_val_batches": 2}
    levels, copies = LossPerLevel(4), Copies()
    callbacks = [copies, SampleGrid(2), EMA(0.5), levels, Dashboard(levels), Throughput(), DenoisingStrips(3)]
    settings = {"logger": logger, "log_every_n_steps": 2, **validation}
    _, module = fit(folder, *callbacks, steps=6, **settings)
    return module, events(logger.log_dir), copies


def picture(event):
    return pil_to_tensor(Image.open(BytesIO(event.encoded_image_string)))


def test_strips_are_the_same_pictures_with_noise_and_without_it_by_the_averaged_weights(shown):
    module, scalars, copies = shown
    strips_ = scalars.Images("denoising")
    assert [strip.step for strip in strips_] == [3, 6]
    first, last = map(picture, strips_)
    assert first.shape == (3, grids.LINE + 6 * 50 + 2, 6 * 50 + 2)
    rows = [sheet[:, grids.LINE :] for sheet in (first, last)]
    for row in range(6):
        top = slice(row * 50, (row + 1) * 50)
        assert torch.equal(rows[0][:, top], rows[1][:, top]) is (row % 2 == 0)
    data = Digits(batch_size=64)
    data.setup()
    chosen = data.splits["val"].values[:64:21][:3]
    x = to_unit(chosen)
    sigmas = torch.linspace(math.log(2), math.log(0.05), 7)[1:-1].exp()
    torch.nn.utils.vector_to_parameters(averaged(copies.weights, 0.5), module.parameters())
    z = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        clean = torch.stack([tweedie(module.eval().denoiser.score, x + s * z, s) for s in sigmas], 1)
    for i in range(3):
        for j in range(5):
            cell = rows[1][0, (2 * i + 1) * 50 + 2 : (2 * i + 2) * 50 : 6, (j + 1) * 50 + 2 : (j + 2) * 50 : 6]
            assert (cell.int() - to_pixels(clean[i, j, 0]).int()).abs().max() <= 1
        clean_cell = rows[1][0, 2 * i * 50 + 2 : (2 * i + 1) * 50 : 6, 2:50:6]
        assert torch.equal(clean_cell, chosen[i, 0])


def test_the_walk_of_the_first_sample_ends_in_the_grid(shown):
    _, scalars, _ = shown
    walk, grid = (picture(scalars.Images(name)[-1]) for name in ("trajectory", "samples"))
    states = len(grids.shown_levels(len(small_module().schedule.sigmas()), 7))
    assert walk.shape == (3, grids.LINE + 52, states * 50 + 2)
    last = walk[:, grids.LINE + 2 :: 6, (states - 1) * 50 + 2 :: 6][:, :8, :8]
    assert torch.equal(last, grid[:, 2:34:4, 2:34:4])


def test_the_charts_have_every_curve_in_its_place(shown):
    _, scalars, _ = shown
    content = scalars.Tensors("custom_scalars__config__")[-1].tensor_proto.string_val[0]
    layout = layout_pb2.Layout.FromString(content)
    sections = {
        part.title: {chart.title: list(chart.multiline.tag) for chart in part.chart} for part in layout.category
    }
    at_a_level = "training loss per dimension at a noise level"
    assert list(sections) == ["loss per dimension", at_a_level, "optimiser", "speed"]
    curves = [tags for charts in sections.values() for tags in charts.values()]
    for (pattern,) in curves:  # all curves of a run have one colour, so each has a chart
        assert [tag for tag in scalars.Tags()["scalars"] if re.match(pattern, tag)], pattern
    assert len(sections[at_a_level]) == 4
    assert list(sections[at_a_level]) == sorted(sections[at_a_level])
    assert "Frechet distance" in charts([], measured=True)["samples"]


def test_training_images_are_shown_next_to_the_samples(shown):
    _, scalars, _ = shown
    (event,) = scalars.Images("training images")
    data = Digits(batch_size=64)
    data.setup()
    first, last = data.splits["train"].values[[0, -1]]
    assert torch.equal(picture(event), tiled(enlarged(torch.stack([first, last]))))


def test_an_untrained_network_has_a_loss_of_a_half_a_dimension(tmp_path):
    data = Digits(batch_size=64)
    trainer = small_trainer(tmp_path, limit_val_batches=2)
    assert trainer.validate(small_module(), data, verbose=False)[0]["val/loss"] == pytest.approx(0.5, abs=0.02)


class Takes(Logger):
    """A logger of images, such as that of Weights & Biases."""

    name, version = "takes", 0

    def __init__(self):
        self.images, self.settings, self.scalars = [], {}, set()

    def log_metrics(self, metrics, step=None):
        self.scalars |= metrics.keys()

    def log_hyperparams(self, params):
        self.settings |= params

    def log_image(self, key, images, step=None):
        self.images.append((key, images[0].size, step))


def test_every_logger_gets_the_images_and_the_settings_that_it_takes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    logger, levels = Takes(), LossPerLevel(4)
    settings = {"check_val_every_n_epoch": None, "val_check_interval": 3, "log_every_n_steps": 1, "logger": logger}
    fit(tmp_path, SampleGrid(2), levels, Dashboard(levels), DenoisingStrips(1), steps=3, **settings)
    assert [name for name, _, _ in logger.images] == ["training images", "denoising", "samples", "trajectory"]
    assert [step for _, _, step in logger.images] == [0, 3, 3, 3]
    assert logger.settings["max_steps"] == 3
    assert "train/loss" in logger.scalars
    assert [file.name for file in (tmp_path / "logs/takes/samples").iterdir()] == ["step=0000003.png"]


class MLflow(MLFlowLogger):
    """MLflow's logger, without MLflow."""

    experiment = property(lambda self: self)
    run_id = "a run"

    def __init__(self):
        self.images = []

    def log_image(self, run_id, image, key, step):
        self.images.append((run_id, image.size, key, step))


def test_mlflow_gets_images_of_its_own_kind():
    logger = MLflow()
    trainer = SimpleNamespace(loggers=[logger], global_step=3, is_global_zero=True)
    show_image(trainer, "samples", torch.zeros(3, 4, 6, dtype=torch.uint8))
    assert logger.images == [("a run", (6, 4), "samples", 3)]


def test_settings_stand_beside_the_last_figures(tmp_path):
    run = train_small(tmp_path, "--samples.count", "0", "--seed_everything", "5")
    scalars = events(tmp_path / "logs/small/version_0")
    content = {tag: scalars._plugin_to_tag_to_content["hparams"][tag] for tag in scalars.PluginTagToContent("hparams")}
    begun = plugin_data_pb2.HParamsPluginData.FromString(content["_hparams_/session_start_info"])
    values = {
        name: getattr(value, value.WhichOneof("kind")) for name, value in begun.session_start_info.hparams.items()
    }
    assert values["network.width"] == 8
    assert values["network.multipliers"] == "[1, 2]"
    assert [values[name] for name in ("data", "batch_size", "max_steps", "seed")] == ["Digits", 64, 7, 5]
    assert (values["network"], values["sampler"], values["lr"]) == ("UNet", "AnnealedLangevin", pytest.approx(0.001))
    assert not [name for name, value in values.items() if value in ("", "None", False)]
    described = plugin_data_pb2.HParamsPluginData.FromString(content["_hparams_/experiment"]).experiment
    figures = [metric.name.tag for metric in described.metric_infos]
    assert figures == ["val/loss", "val/frechet_distance", "train/loss", "images/s"]
    assert "_hparams_/session_end_info" in content
    assert run.name == "step=7.ckpt"


def test_a_run_shorter_than_its_validation_interval_shows_samples_at_its_end(tmp_path):
    train_small(tmp_path, "--trainer.val_check_interval", "1000")
    assert [image.step for image in events(tmp_path / "logs/small/version_0").Images("samples")] == [7]
