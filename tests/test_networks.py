"""Autoencoders, their wrapping, heads, and losses as modules."""

import pytest
import torch
from torch import nn

from fastdc.kernels.student_t import dec_loss, student_t_assign
from fastdc.losses import DECLoss
from fastdc.methods import DCN, DKM, N2D, SCAN, DeepCluster, VaDE
from fastdc.networks import Autoencoder, Centroids, MLPAutoencoder, as_autoencoder


def test_the_default_network_is_that_of_the_paper():
    network = MLPAutoencoder(64)
    shapes = [tuple(p.shape) for p in network.parameters() if p.ndim == 2]
    encoder = [(500, 64), (500, 500), (2000, 500), (10, 2000)]
    assert shapes == encoder + [shape[::-1] for shape in reversed(encoder)]
    assert isinstance(network.encoder[-1], nn.Linear)
    assert isinstance(network.decoder[-1], nn.Linear)


def test_weights_come_from_the_generator_and_the_global_state_is_left_alone():
    before = torch.random.get_rng_state()
    first, second, other = (
        MLPAutoencoder(5, 2, (7,), torch.Generator().manual_seed(seed)).state_dict() for seed in (1, 1, 2)
    )
    MLPAutoencoder(5, 2, (7,))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_weights_are_spread_as_nn_linear_spreads_them():
    weight = MLPAutoencoder(400, 10, (1000,), torch.Generator().manual_seed(0)).encoder[0].weight
    assert weight.abs().max() <= 400**-0.5
    torch.testing.assert_close(weight.std(), torch.tensor(400**-0.5 / 3**0.5), rtol=0.01, atol=0)


def test_with_weights_of_he_signals_keep_their_size():
    x = torch.randn(500, 64, generator=torch.Generator().manual_seed(1))
    sizes = {}
    for init in ("torch", "he"):
        network = MLPAutoencoder(64, 10, (500, 500, 2000), torch.Generator().manual_seed(0), init)
        sizes[init] = network.encoder[:-1](x).square().mean().item()
        assert network.encoder[-1].weight.abs().max() <= 2000**-0.5
    assert 0.7 < sizes["he"] < 1.3
    assert sizes["torch"] < 0.02


def test_weights_of_glorot_go_by_both_widths_in_the_encoder():
    network = MLPAutoencoder(400, 10, (1000,), torch.Generator().manual_seed(0), "glorot")
    bounds = {network.encoder[0]: (6 / 1400) ** 0.5, network.encoder[2]: (6 / 1010) ** 0.5}
    for layer, bound in (bounds | {network.decoder[0]: 10**-0.5, network.decoder[2]: 1000**-0.5}).items():
        assert layer.weight.abs().max() <= bound
        torch.testing.assert_close(layer.weight.std(), torch.tensor(bound / 3**0.5), rtol=0.02, atol=0)
        assert layer.bias.abs().max() <= layer.in_features**-0.5


def test_unknown_weights_are_refused():
    with pytest.raises(ValueError, match="init must be one of torch, he, glorot, got 'xavier'"):
        MLPAutoencoder(5, 2, (7,), init="xavier")


@pytest.mark.parametrize("method", [N2D, VaDE, SCAN, DeepCluster])
def test_methods_for_which_the_scale_does_not_matter_begin_with_weights_of_he(method):
    network = method(3).make_network(400, torch.Generator().manual_seed(0))
    first = next(network.encoder.parameters())
    torch.testing.assert_close(first.std(), torch.tensor((2 / 400) ** 0.5), rtol=0.01, atol=0)


@pytest.mark.parametrize("method", [DCN, DKM])
def test_methods_whose_centers_are_of_kmeans_begin_with_weights_of_glorot(method):
    network = method(3).make_network(400, torch.Generator().manual_seed(0))
    torch.testing.assert_close(network.encoder[0].weight.std(), torch.tensor((2 / 900) ** 0.5), rtol=0.01, atol=0)


class WithMethods(nn.Module):
    def encode(self, x):
        return x[:, :1]

    def decode(self, z):
        return z


class WithSubmodules(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(3, 2), nn.Linear(2, 3)


def test_a_users_modules_are_taken_as_they_are():
    methods, submodules = WithMethods(), WithSubmodules()
    assert as_autoencoder(methods) is methods
    assert as_autoencoder(submodules).encoder is submodules.encoder
    pair = as_autoencoder(None, submodules.encoder, submodules.decoder)
    x = torch.ones(4, 3)
    torch.testing.assert_close(pair(x), submodules.decoder(submodules.encoder(x)))


def test_what_is_no_autoencoder():
    with pytest.raises(TypeError, match=r"autoencoder \(Linear\) must have methods encode and decode"):
        as_autoencoder(nn.Linear(1, 1))
    with pytest.raises(TypeError, match=r"encoder must be a torch\.nn\.Module, got function"):
        as_autoencoder(None, lambda x: x)
    with pytest.raises(ValueError, match="pass either autoencoder= or encoder="):
        as_autoencoder(WithMethods(), nn.Linear(1, 1))
    with pytest.raises(ValueError, match="decoder= needs encoder="):
        as_autoencoder(None, None, nn.Linear(1, 1))
    with pytest.raises(ValueError, match="has no decoder, and a reconstruction is asked for"):
        Autoencoder(nn.Linear(3, 2))(torch.ones(1, 3))


def test_centroids_assign_as_the_kernel_does():
    head = Centroids(2, 1, alpha=2.0)
    assert head.centers.isnan().all()
    head.place(torch.tensor([[0.0], [3.0]]))
    z = torch.tensor([[0.5], [2.9]])
    torch.testing.assert_close(head.assign(z), student_t_assign(z, head.centers, 2.0))
    assert head.statistics(z).labels.tolist() == [0, 1]
    assert head.centers.requires_grad


@pytest.mark.parametrize("alpha", [0, -1.0, float("nan"), float("inf")])
def test_centroids_need_a_positive_alpha(alpha):
    with pytest.raises(ValueError, match="alpha must be a finite number above 0"):
        Centroids(2, 1, alpha)


def test_dec_loss_as_a_module():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(7, 3, generator=generator, requires_grad=True)
    old = torch.randn(7, 3, generator=generator)
    start = torch.randn(4, 3, generator=generator)
    criterion = DECLoss(start, alpha=1.5, power=3.0, frequency_power=0.5)
    exponents = {"alpha": 1.5, "power": 3.0, "frequency_power": 0.5}
    torch.testing.assert_close(criterion(z), dec_loss(z, start, **exponents))
    p = student_t_assign(old, start)
    torch.testing.assert_close(criterion(z, p), dec_loss(z, start, target=p, **exponents))
    frequency = p.sum(0)
    loss = criterion(z, target_z=old, target_centers=start, frequency=frequency)
    expected = dec_loss(z, start, target_x=old, target_centers=start, frequency=frequency, **exponents)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert criterion.centers.grad.abs().sum() > 0
    assert z.grad.abs().sum() > 0
    assert not start.requires_grad
