"""Modules whose tensors are as long as the data."""

from __future__ import annotations

from typing import Any

from torch import nn


class TakesShapes(nn.Module):
    """Own parameters and buffers take shape and dtype of what is loaded: shapes come of the number of samples."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name, own in [*self._parameters.items(), *self._buffers.items()]:
            loaded = state_dict.get(prefix + name)
            if own is not None and loaded is not None:
                own.data = loaded.new_empty(loaded.shape, device=own.device)
        super()._load_from_state_dict(state_dict, prefix, *rest)
