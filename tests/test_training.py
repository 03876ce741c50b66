"""The loop: batches, terms, refreshes, stopping. No clustering method is involved."""

import numpy as np
import pytest
import torch
from torch import nn

from fastdc.networks import Autoencoder, MLPAutoencoder
from fastdc.training import Objective, Settings, Term, Train, Trainer, embed, private_randomness

N_SAMPLES, N_FEATURES = 23, 4


@pytest.fixture
def x():
    return torch.randn(N_SAMPLES, N_FEATURES, generator=torch.Generator().manual_seed(0))


def make_trainer(x, batch_size=8, **options):
    network = MLPAutoencoder(N_FEATURES, 2, (8,), torch.Generator().manual_seed(1))
    return Trainer(network, x, Settings(batch_size=batch_size, seed=2, **options))


class Error(Term):
    name = "error"

    def forward(self, batch):
        return (batch.reconstruction - batch.x).square().mean()


class Norm(Term):
    """Counts its refreshes and remembers the rows of the steps between them."""

    name = "norm"
    needs_refresh = True

    def __init__(self):
        super().__init__()
        self.refreshes = []
        self.rows = []

    def refresh(self, z):
        self.refreshes.append((z, len(self.rows)))
        return {"size": z.square().mean()}

    def forward(self, batch):
        self.rows.append(batch.rows)
        return batch.z.square().mean()


@pytest.mark.parametrize("batch_size", [1, 5, 8, 22, 23, 100])
def test_an_epoch_holds_every_row_once_in_even_batches(x, batch_size):
    trainer = make_trainer(x, batch_size)
    batches = list(trainer.epoch())
    sizes = [len(batch.rows) for batch in batches]
    assert torch.cat([batch.rows for batch in batches]).sort().values.tolist() == list(range(N_SAMPLES))
    assert len(batches) == trainer.steps_per_epoch
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    assert all(torch.equal(batch.x, x[batch.rows]) for batch in batches)


def test_orders_differ_between_epochs_and_agree_between_runs(x):
    orders = [[next(trainer.epoch()).rows for _ in range(2)] for trainer in (make_trainer(x), make_trainer(x))]
    assert torch.equal(orders[0][0], orders[1][0])
    assert not torch.equal(orders[0][0], orders[0][1])


def test_a_batch_is_embedded_once_for_all_terms(x):
    trainer = make_trainer(x)
    calls = []
    trainer.network.encoder.register_forward_hook(lambda *_: calls.append(1))
    batch = next(trainer.epoch())
    Objective([(1.0, Error()), (1.0, Norm())])(batch)
    assert len(calls) == 1


def test_objectives_are_weighted_sums(x):
    batch = next(make_trainer(x).epoch())
    error, norm = Error(), Norm()
    total, parts = (2.0 * error + 0.5 * norm + error)(batch)
    expected = torch.stack([error(batch), norm(batch), error(batch)])
    torch.testing.assert_close(parts, expected.detach())
    torch.testing.assert_close(total, (torch.tensor([2.0, 0.5, 1.0]) * expected).sum())
    assert not parts.requires_grad
    with pytest.raises(ValueError, match="weight of the norm loss must be finite and >= 0, got -1"):
        -1 * norm
    with pytest.raises(NotImplementedError, match="Term must say what its loss is"):
        Term()(batch)


def test_training_is_plain_adam(x):
    trainer, plain = make_trainer(x), make_trainer(x)
    Train(Error(), "fit", 3, 1e-2).run(trainer)
    optimizer = torch.optim.Adam(plain.network.parameters(), lr=1e-2)
    for _ in range(3):
        for batch in plain.epoch():
            optimizer.zero_grad()
            (plain.network(batch.x) - batch.x).square().mean().backward()
            optimizer.step()
    for got, expected in zip(trainer.network.parameters(), plain.network.parameters()):
        torch.testing.assert_close(got, expected)
    assert [record["epoch"] for record in trainer.history] == [0, 1, 2]
    losses = [record["loss"] for record in trainer.history]
    assert losses == sorted(losses, reverse=True)


def test_parameters_without_a_gradient_stay(x):
    trainer = make_trainer(x)
    decoder = {name: value.clone() for name, value in trainer.network.decoder.state_dict().items()}
    Train(Norm(), "fit", 2, 1e-2).run(trainer)
    assert all(torch.equal(value, decoder[name]) for name, value in trainer.network.decoder.state_dict().items())


def test_the_history_holds_means_over_batches(x):
    trainer = make_trainer(x)
    frozen = trainer.network.requires_grad_(False)
    norm = Norm()
    norm.unused = nn.Parameter(torch.zeros(()))
    norm.forward = lambda batch: batch.z.square().mean() + 0 * norm.unused
    Train(2.0 * norm, "fit", 1, 1e-3).run(trainer)
    order = make_trainer(x)
    expected = np.mean([frozen.encode(batch.x).square().mean().item() for batch in order.epoch()])
    record = trainer.history[-1]
    assert record["stage"] == "fit"
    assert record["norm"] == pytest.approx(expected)
    assert record["loss"] == pytest.approx(2 * expected)


@pytest.mark.parametrize(("interval", "expected"), [(1, [*range(12)]), (4, [0, 4, 8]), (99, [0]), (None, [0, 9])])
def test_refreshes_come_every_so_many_steps(x, interval, expected):
    trainer, norm = make_trainer(x), Norm()
    Train(norm, "fit", 4, 1e-3, interval).run(trainer)
    assert [steps for _, steps in norm.refreshes] == expected
    assert all(z.shape == (N_SAMPLES, 2) and not z.requires_grad for z, _ in norm.refreshes)
    assert [record["step"] for record in trainer.history if "step" in record] == expected
    assert all("size" in record for record in trainer.history if "step" in record)


def test_terms_that_need_no_refresh_get_none(x):
    trainer = make_trainer(x)
    Train(Error(), "fit", 2, 1e-3, 1).run(trainer)
    assert not any("step" in record for record in trainer.history)


def test_refreshes_can_end_the_stage_but_not_the_first(x):
    trainer, norm = make_trainer(x), Norm()
    Train(norm, "fit", 9, 1e-3, 4, until=lambda measured: measured["size"] > 0).run(trainer)
    assert len(norm.rows) == 4
    assert [steps for _, steps in norm.refreshes] == [0, 4]


@pytest.mark.parametrize("kind", ["step", "loss"], ids=["a refresh", "an epoch"])
def test_callbacks_see_every_record_and_end_the_stage(x, kind):
    seen = []

    def callback(record):
        seen.append(record)
        return kind in record and record["epoch"] == 1

    trainer = make_trainer(x, callbacks=[callback])
    Train(Norm(), "fit", 9, 1e-3, 3).run(trainer)
    assert seen == trainer.history
    assert kind in seen[-1]
    assert seen[-1]["epoch"] == 1


def test_a_diverging_loss_raises(x):
    trainer = make_trainer(x)
    with pytest.raises(FloatingPointError, match=r"the error loss became (nan|inf) in epoch \d+ of stage 'fit': lower"):
        Train(Error(), "fit", 50, 1e30).run(trainer)


@pytest.mark.parametrize("rate", [0, -1.0, float("nan")])
def test_learning_rates_are_positive(rate):
    with pytest.raises(ValueError, match="learning rate of stage 'fit' must be a finite number above 0"):
        Train(Error(), "fit", 1, rate)


def test_progress_goes_to_standard_error_and_only_when_asked(x, capsys):
    Train(Error(), "quiet", 2, 1e-3).run(make_trainer(x))
    assert capsys.readouterr() == ("", "")
    Train(Error(), "loud", 2, 1e-3).run(make_trainer(x, verbose=True))
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "loud: 100%" in shown.err
    assert "loss=" in shown.err


def test_the_host_does_not_wait_inside_an_epoch(x, monkeypatch):
    waits = []
    for name in ("item", "tolist", "__bool__", "__float__", "__int__"):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda t, o=original, n=name: waits.append(n) or o(t))
    Train(Error() + Norm(), "fit", 3, 1e-3, 6).run(make_trainer(x, batch_size=4))
    assert waits == ["tolist"] * 6  # an epoch has one, a refresh has one: 3 and 3


def test_an_embedding_does_not_depend_on_the_rows_beside_it(x):
    network = make_trainer(x).network
    many = x.repeat(30, 1)[:600]
    whole = embed(network, many)
    assert torch.equal(embed(network, many[:1]), whole[:1])
    assert torch.equal(embed(network, many[100:437]), whole[100:437])
    assert torch.equal(embed(network, many.flip(0)).flip(0), whole)


def test_embedding_switches_dropout_off_and_back_on(x):
    network = Autoencoder(nn.Dropout(0.5))
    network.train()
    assert torch.equal(embed(network, x), x)
    assert network.training


def test_private_randomness_is_seeded_and_leaves_no_trace():
    before = torch.random.get_rng_state()
    draws = []
    for _ in range(2):
        with private_randomness(3, torch.device("cpu")):
            draws.append(torch.rand(2))
    assert torch.equal(*draws)
    assert torch.equal(torch.random.get_rng_state(), before)
