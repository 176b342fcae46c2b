"""Inception is the network of the literature, whose weights are read as tensors, from where torch keeps them."""

import pickle
import shutil
from hashlib import sha256
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from ncsn.data import to_pixels
from ncsn.evaluation.extractors import extract
from ncsn.evaluation.inception import load_inception
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
from torchmetrics.image.fid import NoTrainInceptionV3

NAME = Path(URL_INCEPTION_V3).name


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A file of weights of chance, of the shapes of Inception's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", lambda url, progress: None
        )
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], verbose=False)
    torch.manual_seed(0)
    for name, tensor in network.state_dict().items():
        if tensor.ndim > 1:
            torch.nn.init.kaiming_normal_(tensor)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
    file = tmp_path_factory.mktemp("weights") / NAME
    torch.save(network.state_dict(), file)
    return file


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Torch's folder of checkpoints, empty, and no network."""

    def unreachable(url, *others, **more):
        raise URLError("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", unreachable)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture
def placed(folder, weights) -> Path:
    """That folder with the weights in it."""
    shutil.copy(weights, folder / NAME)
    return folder / NAME


def test_features_and_logits_are_those_of_torchmetrics_and_torch_fidelity_at_one_pass(placed):
    extractor = load_inception()
    assert not extractor.training
    assert not any(parameter.requires_grad for parameter in extractor.parameters())
    x = 1.2 * torch.rand(2, 3, 32, 32) - 0.1
    found = extract(extractor, x)
    assert (found.features.shape, found.logits.shape) == ((2, 2048), (2, 1008))
    for name, seen in (("2048", found.features), ("logits_unbiased", found.logits)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
            other = NoTrainInceptionV3("inception-v3-compat", [name], str(placed), antialias=False)
        with torch.no_grad():
            torch.testing.assert_close(seen, other(to_pixels(x)))
        assert seen.std() > 0


def test_weights_are_named_by_their_sum_and_others_than_the_published_are_said_to_be(placed):
    found = sha256(placed.read_bytes()).hexdigest()
    assert load_inception().source == (
        f"Inception-v3 ({placed}, sha256 {found[:8]}, which are not the published weights)"
    )


@pytest.mark.parametrize("shape", [(1, 32, 32), (4, 32, 32)])
def test_images_that_are_not_in_colour_are_refused(placed, shape):
    with pytest.raises(ValueError, match=r"expected colour images \(3, H, W\)"):
        extract(load_inception(), torch.rand(2, *shape))


def test_without_a_network_it_says_what_to_download_and_where_to_put_it(folder):
    with pytest.raises(OSError, match="could not be downloaded") as error:
        load_inception()
    assert f"download {URL_INCEPTION_V3} and put it at {folder / NAME}" in str(error.value)
    assert not list(folder.iterdir())


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("marker"),)


@pytest.mark.parametrize("content", ["code", "cut", "html", "other"])
def test_a_file_of_anything_else_is_refused_and_nothing_in_it_is_run(folder, tmp_path, weights, content, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = folder / NAME
    if content == "code":
        torch.save({"weight": Evil()}, file, pickle_module=pickle)
    elif content == "other":
        torch.save({"weight": torch.zeros(3)}, file)
    else:
        file.write_bytes({"cut": weights.read_bytes()[:100_000], "html": b"<html>"}[content])
    with pytest.raises(OSError, match="does not hold its weights, or is damaged") as error:
        load_inception()
    assert "\n" not in str(error.value)
    assert not Path("marker").exists()
