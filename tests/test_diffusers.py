"""diffusers' variance-exploding networks as scores, against diffusers itself."""

import pytest
import torch
from ncsn import from_diffusers
from ncsn.samplers import EulerMaruyama

diffusers = pytest.importorskip("diffusers", reason="diffusers is an extra: pip install 'ncsn[diffusers]'")
SIGMA = torch.tensor([0.05, 1.0, 300.0])


def network(**settings):
    """A small one of the kind of google/ncsnpp-ffhq-256, with random weights."""
    return diffusers.UNet2DModel(
        sample_size=16,
        block_out_channels=(32, 32),
        layers_per_block=1,
        down_block_types=("SkipDownBlock2D", "AttnSkipDownBlock2D"),
        up_block_types=("AttnSkipUpBlock2D", "SkipUpBlock2D"),
        **{"time_embedding_type": "fourier", **settings},
    ).eval()


@pytest.fixture(scope="module")
def ncsnpp():
    torch.manual_seed(0)
    return network()


@pytest.fixture
def x():
    return torch.rand(3, 3, 16, 16) + SIGMA.view(3, 1, 1, 1) * torch.randn(3, 3, 16, 16)


@torch.no_grad()
def test_the_score_is_what_diffusers_gives_its_sampler(ncsnpp, x):
    score = from_diffusers(ncsnpp)
    theirs = ncsnpp(x, SIGMA).sample
    assert theirs.std() > 1e-4
    torch.testing.assert_close(score(x, SIGMA.view(3, 1, 1, 1)), theirs)
    torch.testing.assert_close(score.score(x[:1], SIGMA[0]), theirs[:1], atol=1e-3, rtol=1e-3)  # another batch


@torch.no_grad()
def test_the_last_step_of_euler_maruyama_is_that_of_diffusers(ncsnpp):
    """From the lowest level to 0, the one that both take without noise: x + sigma^2 score."""
    scheduler = diffusers.ScoreSdeVeScheduler(sigma_min=0.5)
    scheduler.set_timesteps(10)
    scheduler.set_sigmas(10)
    x, sigma = torch.randn(2, 3, 16, 16), torch.tensor([0.5])
    theirs = scheduler.step_pred(ncsnpp(x, sigma.expand(2)).sample, 0, x).prev_sample_mean
    *_, ours = EulerMaruyama()(from_diffusers(ncsnpp), x, sigma)
    torch.testing.assert_close(ours, theirs)
    assert (ours - x).std() > 1e-3


@torch.no_grad()
def test_a_network_of_data_in_another_range_is_brought_to_ours(ncsnpp, x):
    """By the change of variables y = 2 x - 1."""
    y, theirs = 2 * x - 1, from_diffusers(ncsnpp)
    score = from_diffusers(ncsnpp, data_range=(-1, 1))
    torch.testing.assert_close(score(x, torch.tensor(0.5)), 2 * theirs(y, torch.tensor(1.0)))
    with pytest.raises(ValueError, match=r"low < high, got data_range=\(1, 1\)"):
        from_diffusers(ncsnpp, (1, 1))


@torch.no_grad()
def test_a_local_folder_is_read_and_no_pickle(ncsnpp, x, tmp_path):
    ncsnpp.save_pretrained(tmp_path / "net")
    torch.testing.assert_close(from_diffusers(tmp_path / "net")(x, SIGMA[1]), from_diffusers(ncsnpp)(x, SIGMA[1]))
    diffusers.ScoreSdeVePipeline(ncsnpp, diffusers.ScoreSdeVeScheduler()).save_pretrained(tmp_path / "pipeline")
    torch.testing.assert_close(from_diffusers(tmp_path / "pipeline")(x, SIGMA[1]), from_diffusers(ncsnpp)(x, SIGMA[1]))
    ncsnpp.save_pretrained(tmp_path / "pickle", safe_serialization=False)
    with pytest.raises(ValueError, match="does not hold a UNet2DModel whose weights are safetensors"):
        from_diffusers(tmp_path / "pickle")
    with pytest.raises(ValueError, match="is not a local folder with a config"):
        from_diffusers("google/ncsnpp-ffhq-256")


@torch.no_grad()
def test_a_network_of_classes_takes_their_labels(x):
    classes = network(num_class_embeds=3)
    label = torch.tensor([0, 1, 2])
    theirs = classes(x, SIGMA, class_labels=label).sample
    torch.testing.assert_close(from_diffusers(classes)(x, SIGMA.view(3, 1, 1, 1), label), theirs)
    with pytest.raises(ValueError, match="this network needs a label"):
        from_diffusers(classes)(x, SIGMA[0])
    with pytest.raises(ValueError, match="this network takes no label"):
        from_diffusers(network())(x, SIGMA[0], label)


def test_a_network_that_gives_no_score_is_refused():
    with pytest.raises(ValueError, match="fourier', got network='UNet2DModel', time_embedding_type='positional'"):
        from_diffusers(network(time_embedding_type="positional"))
    with pytest.raises(ValueError, match="got network='Linear', time_embedding_type=None"):
        from_diffusers(torch.nn.Linear(1, 1))
