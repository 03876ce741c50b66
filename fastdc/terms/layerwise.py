"""What the layers of a clean and of a noisy encoder say of the same rows (DEPICT)."""

from __future__ import annotations

from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, linear, mse_loss

from fastdc.kernels._checks import check_not_negative, check_positive
from fastdc.kernels.mutual_information import vat_kl
from fastdc.networks import SoftmaxHead
from fastdc.terms.watch import Watch
from fastdc.training import Batch, Term

ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid)
SMALLEST = 1e-12  # frequency of a cluster that nothing is in


class Layers(NamedTuple):
    """Outputs of the encoder's layers, from the rows to the embedding, each (n_rows, n_units)."""

    clean: list[Tensor]
    noisy: list[Tensor]


class NoisyPass:
    """Sends a batch through the encoder twice, once with dropout before each layer; once for all terms that ask.

    Parameters
    ----------
    p : float
        Share of the units that dropout sets to zero.
    """

    def __init__(self, p: float) -> None:
        if not 0 <= p < 1:
            raise ValueError(f"dropout must be a share from 0 to below 1, got {p}")
        self.p = p
        self._seen: WeakKeyDictionary[Batch, Layers] = WeakKeyDictionary()

    def __call__(self, batch: Batch) -> Layers:
        if batch not in self._seen:
            encoder: Any = batch.network.encoder
            noisy = dropout(batch.x, self.p)
            self._seen[batch] = Layers(
                [batch.x, *activation_outputs(encoder, batch.x)], [noisy, *activation_outputs(encoder, noisy, self.p)]
            )
        return self._seen[batch]


def activation_outputs(layers: nn.Sequential, x: Tensor, p: float = 0.0) -> list[Tensor]:
    """What comes out of each activation, and of the last layer, flat; activations with dropout of a share ``p``."""
    outputs = []
    for layer in layers:
        x = layer(x)
        if isinstance(layer, ACTIVATIONS):
            x = dropout(x, p) if p else x
            outputs.append(x.flatten(1))
    return outputs if isinstance(layers[-1], ACTIVATIONS) else [*outputs, x.flatten(1)]


class LayerReconstruction(Term):
    """Squared error of what the decoder makes of the noisy embedding, at each layer, beside the clean encoder's.

    Each layer's error is averaged over rows and units, and the layers are added up: the rows themselves, and the hidden
    layers by their weight. The clean encoder's outputs are constants.

    Parameters
    ----------
    layers : NoisyPass
    hidden_weight : float
    """

    name = "reconstruction"

    def __init__(self, layers: NoisyPass, hidden_weight: float = 1.0) -> None:
        super().__init__()
        self.layers = layers
        self.hidden_weight = check_not_negative(hidden_weight, "hidden_weight")

    def forward(self, batch: Batch) -> Tensor:
        seen, decoder = self.layers(batch), batch.network.decoder
        decoded = activation_outputs(decoder, seen.noisy[-1])[::-1]  # type: ignore[arg-type]
        wanted = seen.clean[:-1]
        if [made.shape for made in decoded] != [layer.shape for layer in wanted]:
            widths = [[layer.shape[1] for layer in layers] for layers in (wanted, decoded[::-1])]
            raise ValueError(
                f"the decoder's layers must mirror the encoder's: encoder {widths[0]}, decoder {widths[1]} units"
            )
        rows, *hidden = (mse_loss(made, layer.detach()) for made, layer in zip(decoded, wanted))
        return rows + self.hidden_weight * sum(hidden)


class BalancedTarget(Watch):
    r"""KL(Q || P~): P~ is the noisy encoder's prediction, Q that of the clean one, sharpened and balanced.

    Q is that of the last refresh, from whose embedding and weights it is rebuilt, a batch at a time.

    Parameters
    ----------
    head : SoftmaxHead
        Linear.
    layers : NoisyPass
    power, frequency_power : float
        q ∝ p^power / frequency^frequency_power, the frequency of a cluster being its sum of p.
    """

    name = "clustering"
    head: SoftmaxHead

    def __init__(self, head: SoftmaxHead, layers: NoisyPass, power: float = 2.0, frequency_power: float = 1.0) -> None:
        super().__init__(head)
        self.layers = layers
        self.power = check_positive(power, "power")
        self.frequency_power = check_not_negative(frequency_power, "frequency_power")

    @torch.no_grad()
    def refresh(self, z: Tensor) -> dict[str, Tensor]:
        seen, measured = self.look(z)
        weight, bias = self.head.layers[0].parameters()
        balance = self.frequency_power * seen.frequency.clamp(min=SMALLEST).log()
        self.memory |= {"z": z, "weight": self.power * weight, "bias": self.power * bias - balance}
        return measured

    def forward(self, batch: Batch) -> Tensor:
        with torch.autocast(batch.x.device.type, enabled=False):
            log_q = linear(self.memory["z"][batch.rows], self.memory["weight"], self.memory["bias"])  # plus a constant
        return vat_kl(log_q, self.head(self.layers(batch).noisy[-1]))
