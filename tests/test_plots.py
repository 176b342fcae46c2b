"""Plots of points and of hidden units."""

import pytest
import torch
from ncsn.evaluation.plots import plot, plot_points, plot_units
from ncsn.model.model import Model
from ncsn.noise import GeometricSchedule
from ncsn.samplers import Euler
from ncsn.score import ScoreModel
from ncsn.score.densities import Gaussian


def tile(image, row, column, height, width):
    """The image in a place of a grid whose tiles are 2 apart: grey, in [0, 1]."""
    top, left = 2 + row * (height + 2), 2 + column * (width + 2)
    part = torch.as_tensor(image)[top : top + height, left : left + width]
    assert (part == part[..., :1]).all()  # grey
    return part[..., 0] / 255


def test_the_filters_are_the_weights_each_over_its_largest():
    weight = torch.randn(5, 32 * 40)
    weight[1] *= 1e-3
    weight[4] = 0
    samples = torch.rand(2, 1, 32, 40)
    filters, drawn = plot_units(weight.requires_grad_(), samples).axes
    assert filters.get_title() == "filters of 5 hidden units: grey is 0"
    assert drawn.get_title() == "2 samples"
    image = filters.images[0].get_array()
    for unit, of in enumerate(weight.detach().view(5, 32, 40)):
        expected = 0.5 + 0.5 * of / of.abs().max().clamp(min=1e-12)
        torch.testing.assert_close(tile(image, unit // 3, unit % 3, 32, 40), expected, rtol=0, atol=0.51 / 255)
    for i in range(2):
        shown = tile(drawn.images[0].get_array(), 0, i, 32, 40)
        torch.testing.assert_close(shown, samples[i, 0], rtol=0, atol=0.51 / 255)


@pytest.mark.parametrize("known", [True, False])
def test_the_exact_field_is_under_the_learned_one_where_there_is_one(known):
    density = Gaussian(torch.zeros(2), torch.tensor(1.0))
    sigmas = torch.tensor([1.0, 0.1])
    x = torch.randn(50, 2)
    figure = plot_points(x, x, lambda x, sigma: -x, density if known else None, sigmas)
    assert len(figure.axes) == 4
    for ax, sigma in zip(figure.axes[2:], ("1", "0.1"), strict=True):
        assert len(ax.collections) == 1 + known
        assert ax.get_title() == f"learned score{' over the exact one' if known else ''}, sigma = {sigma}"


def test_points_whose_data_is_not_known_are_shown_with_the_learned_score_alone():
    class Inward(ScoreModel):
        def score(self, x, sigma, label=None):
            return -x

    x = 2 * torch.randn(50, 2)
    figure = plot(x, Model(Inward(), GeometricSchedule(1.0, 0.1, 5), Euler(), (2,)), None)
    samples, *fields = figure.axes
    assert samples.get_title() == "50 samples"
    torch.testing.assert_close(torch.tensor(samples.lines[0].get_xydata()).float(), x)
    assert samples.get_xlim()[1] == pytest.approx(1.1 * x.abs().max().item())
    assert [ax.get_title() for ax in fields] == ["learned score, sigma = 0.32", "learned score, sigma = 0.1"]
