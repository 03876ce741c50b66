"""What a decoder makes of an embedding, compared with where it came from."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from fastdc.training import Batch, Term


class Reconstruction(Term):
    """Squared error of the decoder's output, averaged over rows, views, and features unless told to sum over them.

    Each view is to give itself, as in an autoencoder; with ``clean`` each is to give the rows it is a view of, as in
    a denoising one.

    Parameters
    ----------
    clean : bool
    summed : bool
        Whether the errors of a row are summed, as many papers write them.
    """

    name = "reconstruction"

    def __init__(self, clean: bool = False, summed: bool = False) -> None:
        super().__init__()
        self.clean, self.summed = clean, summed

    def forward(self, batch: Batch) -> Tensor:
        errors = [mse_loss(view.reconstruction, batch.x if self.clean else view.x) for view in batch.views]
        return torch.stack(errors).mean() * (batch.x[0].numel() if self.summed else 1)
