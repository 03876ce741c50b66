"""What the loop offers beyond one objective: schedules, turns, views, parts of batches, low precision, occasions."""

import pytest
import torch
from torch import nn

from fastdc.networks import Autoencoder, MLPAutoencoder
from fastdc.terms import Reconstruction
from fastdc.training import Alternate, Batch, Objective, Ramp, Settings, Term, Train, Trainer, Turn
from fastdc.views import (
    Augmented,
    CleanAndAugmented,
    FeatureDropout,
    GaussianNoise,
    ImageTransform,
    NeighborViews,
    RandomAffine,
    RandomResizedCrop,
)


@pytest.fixture
def x():
    return torch.randn(23, 4, generator=torch.Generator().manual_seed(0))


def make_trainer(x, batch_size=8, **options):
    network = MLPAutoencoder(4, 2, (8,), torch.Generator().manual_seed(1))
    return Trainer(network, x, Settings(batch_size=batch_size, seed=2, **options))


class Size(Term):
    """Squared length of the embedding; it writes down every occasion."""

    name = "size"

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, batch):
        self.seen.append("step")
        return batch.z.square().mean()

    def start_epoch(self, progress):
        self.seen.append(round(progress, 2))

    def after_step(self, batch):
        self.seen.append(f"after {len(batch.rows)}")


def test_a_ramp_goes_straight_and_stays():
    ramp = Ramp(0.0, 2.0, until=0.5)
    assert [ramp(progress) for progress in (0.0, 0.25, 0.5, 0.9)] == [0.0, 1.0, 2.0, 2.0]
    with pytest.raises(ValueError, match="until must be a progress above 0 and at most 1, got 0"):
        Ramp(0, 1, until=0)


def test_weights_go_by_the_progress_of_the_stage(x):
    trainer = make_trainer(x)
    Train(Ramp(1.0, 0.0) * Reconstruction() + 0.5 * Size(), "fit", 4, 1e-3).run(trainer)
    for record in trainer.history:
        weight = 1 - record["epoch"] / 4
        assert record["loss"] == pytest.approx(weight * record["reconstruction"] + 0.5 * record["size"])
    with pytest.raises(ValueError, match="weight of the size loss must be finite and >= 0, got -1"):
        Train(Ramp(-1.0, 0.0) * Size(), "fit", 4, 1e-3)


def test_terms_of_weight_zero_are_not_computed(x):
    trainer, size = make_trainer(x), Size()
    Train(Reconstruction() + Ramp(0.0, 1.0) * size, "fit", 2, 1e-3).run(trainer)
    assert size.seen.count("step") == trainer.steps_per_epoch  # of the second epoch alone
    assert trainer.history[0]["size"] == 0.0
    before = [parameter.clone() for parameter in trainer.network.parameters()]
    Train(0.0 * Size(), "rest", 1, 1e-3).run(trainer)
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.network.parameters()))


def test_terms_hear_of_epochs_and_steps(x):
    size = Size()
    Train(size, "fit", 2, 1e-3).run(make_trainer(x, 12))
    step = ["step", "after 12", "step", "after 11"]
    assert size.seen == [0.0, *step, 0.5, *step]


def test_learning_rates_decay_by_the_progress(x):
    rates = []

    class Look(Size):
        def after_step(self, batch):
            rates.append(self.optimizer.param_groups[0]["lr"])

    term = Look()

    def optimizer(parameters, lr):
        term.optimizer = torch.optim.SGD(parameters, lr=lr)
        return term.optimizer

    Train(term, "fit", 2, 0.1, optimizer=optimizer, decay=Ramp(1.0, 0.0)).run(make_trainer(x, None))
    assert rates == pytest.approx([0.1, 0.05])


def test_a_batch_of_all_rows_stands_in_the_order_of_the_data(x):
    for size in (None, 23, 100):
        (batch,) = make_trainer(x, size).epoch()
        assert torch.equal(batch.rows, torch.arange(23))


def test_parts_of_a_batch_add_up_to_its_gradient(x):
    whole, parts = make_trainer(x), make_trainer(x, accumulate=3)
    for trainer in (whole, parts):
        Train(Reconstruction(), "fit", 2, 1e-2).run(trainer)
    for got, expected in zip(parts.network.parameters(), whole.network.parameters()):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-5)
    assert parts.history[-1]["loss"] == pytest.approx(whole.history[-1]["loss"], rel=1e-4)


def test_low_precision_trains(x):
    with pytest.raises(ValueError, match=r"amp must be None or one of \('bfloat16', 'float16'\), got 'half'"):
        make_trainer(x, amp="half")
    trainer, kinds = make_trainer(x, amp="bfloat16"), set()
    trainer.network.encoder[0].register_forward_hook(lambda *given: kinds.add(given[-1].dtype))
    Train(Reconstruction(), "fit", 5, 1e-2).run(trainer)
    assert kinds == {torch.bfloat16}
    assert trainer.history[-1]["loss"] < trainer.history[0]["loss"]
    assert next(trainer.network.parameters()).dtype == torch.float32


def test_players_take_turns_and_change_only_their_own(x):
    class Judge(Term):
        """How well a critic tells rows from their reconstructions; ``sign`` says for whom."""

        def __init__(self, critic, name, sign):
            super().__init__()
            self.critic, self.name, self.sign, self.calls = critic, name, sign, 0

        def forward(self, batch):
            self.calls += 1
            made = batch.reconstruction if self.sign > 0 else batch.reconstruction.detach()
            gap = self.critic(batch.x).mean() - self.critic(made).mean()
            return 10 + self.sign * gap

    trainer = make_trainer(x, 6)
    critic = nn.Linear(4, 1)
    start = {"network": [p.clone() for p in trainer.network.parameters()], "critic": critic.weight.clone()}
    judge, forger = Judge(critic, "critic", -1), Judge(critic, "forger", 1)
    turns = [
        Turn(objective=judge, learning_rate=1e-2, modules=[critic]),
        Turn(objective=forger, learning_rate=1e-2, modules=[trainer.network], every=2),
    ]
    stage = Alternate("play", 2, turns)
    stage.run(trainer)
    assert judge.calls == 8
    assert forger.calls == 4
    assert set(trainer.history[-1]) == {"stage", "epoch", "loss", "critic", "forger"}
    assert not torch.equal(critic.weight, start["critic"])
    assert all(not torch.equal(a, b) for a, b in zip(start["network"], trainer.network.parameters()))
    with pytest.raises(ValueError, match="learning rate of stage 'play' must be"):
        Alternate("play", 1, [Turn(objective=judge, learning_rate=0.0)])
    only = make_trainer(x, 6)
    before = [p.clone() for p in only.network.parameters()]
    Alternate("judge", 1, [Turn(objective=Judge(critic, "critic", -1), learning_rate=1e-2, modules=[critic])]).run(only)
    assert all(torch.equal(a, b) for a, b in zip(before, only.network.parameters()))


def test_losses_of_one_name_are_told_apart(x):
    trainer = make_trainer(x)
    Train(Size() + 2.0 * Size(), "fit", 1, 1e-3).run(trainer)
    record = trainer.history[-1]
    assert record["loss"] == pytest.approx(record["size"] + 2 * record["size'"])


def test_views_are_made_once_and_embedded_each(x):
    calls = []

    def double(rows):
        calls.append(len(rows))
        return 2 * rows

    network = Autoencoder(nn.Identity(), nn.Identity())
    batch = Batch(network, x[:5], torch.arange(5), x, CleanAndAugmented(double))
    assert batch.views is batch.views
    assert batch.views[0] is batch
    assert torch.equal(batch.views[1].z, 2 * x[:5])
    assert calls == [5]
    assert Batch(network, x, torch.arange(23)).views[0].x is x
    head = nn.Linear(4, 3)
    assert batch.through(head) is batch.through(head)


def test_reconstructions_of_views(x):
    network = Autoencoder(nn.Identity(), nn.Identity())
    batch = Batch(network, x, torch.arange(23), x, CleanAndAugmented(lambda rows: rows + 3))
    assert Reconstruction()(batch).item() == 0.0
    assert Reconstruction(clean=True)(batch).item() == pytest.approx(4.5)  # 0 and 9
    assert Reconstruction(clean=True, summed=True)(batch).item() == pytest.approx(4.5 * batch.x.shape[1])


def test_neighbor_views_are_neighbors(x):
    indices = torch.tensor([[(i + 1) % 23, (i + 2) % 23] for i in range(23)])
    rows = torch.tensor([3, 22, 7])
    views = NeighborViews(indices)
    drawn = set()
    for _ in range(20):
        own, neighbor = views(Batch(nn.Identity(), x[rows], rows), x)
        assert torch.equal(own, x[rows])
        assert all(any(torch.equal(n, x[j]) for j in indices[r]) for n, r in zip(neighbor, rows))
        drawn.add(tuple(neighbor.flatten().tolist()))
    assert len(drawn) > 1


def test_transforms_of_vectors(x):
    torch.manual_seed(0)
    big = torch.ones(1000, 4)
    noisy = GaussianNoise(0.5)(big)
    assert abs((noisy - big).std() - 0.5) < 0.05
    dropped = FeatureDropout(0.25)(big)
    assert abs((dropped == 0).float().mean() - 0.25) < 0.05
    assert len(Augmented(GaussianNoise(0.1), 3)(Batch(nn.Identity(), x, torch.arange(23)), x)) == 3
    with pytest.raises(ValueError, match="std must be"):
        GaussianNoise(-1.0)


def test_images_are_moved_as_said():
    image = torch.zeros(1, 1, 9, 15)
    image[0, 0, 4, 7] = 1.0  # the middle stays where it is
    image[0, 0, 4, 11] = 1.0
    flat, shape = image.flatten(1), (1, 9, 15)
    still = RandomAffine(shape, degrees=0, translate=0)(flat)
    torch.testing.assert_close(still, flat, atol=1e-5, rtol=0)
    torch.manual_seed(0)
    many = RandomAffine(shape, degrees=90, translate=0)(flat.expand(200, -1)).view(-1, 9, 15)
    assert bool((many[:, 4, 7] > 0.8).all())
    where = many.clone()
    where[:, 3:6, 6:9] = 0
    distance = [((p - torch.tensor([4, 7])) ** 2).sum().sqrt() for p in torch.nonzero(where > 0.5)[:, 1:]]
    assert distance
    assert all(abs(d - 4) < 0.75 for d in distance)  # turned around the middle, not squeezed
    whole = RandomResizedCrop(shape, (1.0, 1.0), flip=False)(flat)
    torch.testing.assert_close(whole, flat, atol=1e-5, rtol=0)
    mirrored = RandomResizedCrop(shape, (1.0, 1.0))(flat.expand(50, -1)).view(-1, 9, 15)
    sides = (mirrored[:, 4, 3] > 0.9).float() + (mirrored[:, 4, 11] > 0.9).float()
    assert bool((sides == 1).all())
    assert 0 < int((mirrored[:, 4, 3] > 0.9).sum()) < 50
    assert torch.equal(ImageTransform(lambda images: images.flip(3), shape)(flat), image.flip(3).flatten(1))
    for bad in [(1, 9), (1, 2, 9), (0, 9, 9)]:
        with pytest.raises(ValueError, match="image_shape must be"):
            RandomAffine(bad)
    with pytest.raises(ValueError, match=r"scale must be \(low, high\)"):
        RandomResizedCrop(shape, (0.5, 0.1))


def test_objectives_add_up():
    one, two = Size(), Size()
    total = 2.0 * one + (Ramp(0, 1) * two + one)
    assert isinstance(total, Objective)
    assert total.weights == [2.0, 0.0, 1.0]
    total.start_epoch(0.5)
    assert total.weights == [2.0, 0.5, 1.0]
