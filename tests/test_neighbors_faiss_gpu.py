"""The way of FAISS on GPUs, with a stand-in for faiss-gpu and for memory of a GPU: it proves what is handed over,
neither that faiss-gpu takes it nor how fast it is; ``test_neighbors_faiss.py`` runs the real one where there is one.
"""

import contextlib
import sys
import types

import pytest
import torch

from fastdc.kernels import BackendError
from fastdc.kernels.neighbors import knn, search
from tests.neighbors_cases import METRICS, make_points


class OnDevice(torch.Tensor):
    """A tensor that says it lies on a GPU, and that must not be brought to the host."""

    is_cuda, is_cpu = True, False

    def get_device(self):
        return 3

    def _refuse(self, *_, **__):
        raise AssertionError("a copy to host memory")

    cpu = numpy = tolist = __array__ = _refuse


def place(x):
    return x.clone().as_subclass(OnDevice)


class StandIn:
    """What of faiss-gpu is used. Every call is written down with the stream that it runs on."""

    METRIC_L2, METRIC_INNER_PRODUCT = 1, 0

    def __init__(self):
        self.calls, self.stream, self.made = [], None, []
        self.StandardGpuResources = self._resources
        self.GpuIndexIVFFlatConfig = types.SimpleNamespace
        self.GpuIndexIVFFlat = self._index
        self.contrib = types.SimpleNamespace(torch_utils=types.SimpleNamespace(using_stream=self._using_stream))

    def _resources(self):
        self.made.append({})
        settings = self.made[-1]
        return types.SimpleNamespace(
            setTempMemory=lambda size: settings.update(scratch=size),
            setPinnedMemory=lambda size: settings.update(pinned=size),
        )

    @contextlib.contextmanager
    def _using_stream(self, resources):
        assert self.stream is None
        self.stream = "torch's"
        yield
        self.stream = None

    def _take(self, name, x):
        assert isinstance(x, OnDevice), f"{name} got {type(x)}"
        assert x.dtype == torch.float32
        assert x.is_contiguous()
        self.calls.append((name, x.data_ptr(), tuple(x.shape), self.stream))

    def knn_gpu(self, resources, rows, points, k, metric):
        self._take("queries", rows)
        self._take("points", points)
        return self._nearest(rows, points, k, metric)

    def _nearest(self, rows, points, k, metric):
        if metric == self.METRIC_L2:
            return torch.cdist(rows, points, compute_mode="donot_use_mm_for_euclid_dist").topk(k, largest=False)
        return (rows @ points.T).topk(k)

    def _index(self, resources, d, n_lists, metric, config):
        held = []

        def add(x):
            self._take("add", x)
            held.append(x)

        def find(rows, k):
            self._take("search", rows)
            assert index.nprobe <= min(n_lists, 2048)
            return self._nearest(rows, held[0], k, metric)

        self.made.append({"lists": n_lists, "device": config.device})
        index = types.SimpleNamespace(nprobe=1, train=lambda x: self._take("train", x), add=add, search=find)
        return index


@pytest.fixture
def stand_in(monkeypatch):
    faiss = StandIn()
    monkeypatch.setitem(sys.modules, "faiss", faiss)
    monkeypatch.setitem(sys.modules, "faiss.contrib", faiss.contrib)
    monkeypatch.setitem(sys.modules, "faiss.contrib.torch_utils", faiss.contrib.torch_utils)
    monkeypatch.setattr(torch.cuda, "device_of", lambda x: contextlib.nullcontext())
    return faiss


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("algorithm", ["faiss", "ivf"])
@pytest.mark.parametrize("of_itself", [True, False])
def test_tensors_are_handed_over_where_they_lie_on_the_stream_of_torch(stand_in, algorithm, metric, of_itself):
    x, queries = make_points(300, 12), None if of_itself else make_points(40, 12, seed=1)
    on_device = place(x), None if of_itself else place(queries)
    _, indices = search.knn_faiss(*on_device, 5, metric, algorithm)
    assert torch.equal(indices.as_subclass(torch.Tensor), knn(x, 5, queries, metric, "exact").indices)
    assert {stream for *_, stream in stand_in.calls} == {"torch's"}
    assert stand_in.made[0] == {"scratch": search.SCRATCH_BYTES, "pinned": 0}
    taken = {name: (pointer, shape) for name, pointer, shape, _ in stand_in.calls}
    if algorithm == "ivf":
        assert stand_in.made[1] == {"lists": 7, "device": 3}
        assert list(taken) == ["train", "add", "search"]
    if metric != "cosine":  # cosine's rows are made unit rows first
        assert taken["add" if algorithm == "ivf" else "points"][0] == on_device[0].data_ptr()
        rows = on_device[0 if of_itself else 1]
        assert taken["search" if algorithm == "ivf" else "queries"] == (rows.data_ptr(), tuple(rows.shape))


def test_ivf_learns_from_a_sample(stand_in):
    n_lists, n_probes = search._lists(100_000)
    assert (n_lists, n_probes) == (1264, 158)
    search.search_gpu(stand_in, place(make_points(100_000, 2)), place(make_points(3, 2)), 1, "euclidean", "ivf")
    shapes = {name: shape for name, _, shape, _ in stand_in.calls}
    assert shapes["add"] == (100_000, 2)
    assert 64 * n_lists <= shapes["train"][0] <= 2 * 64 * n_lists


def test_a_faiss_without_gpu_part_says_what_to_do(stand_in):
    del stand_in.StandardGpuResources
    with pytest.raises(BackendError, match="this faiss has no GPU part; install faiss-gpu, or use algorithm 'exact'"):
        search.load_faiss(on_gpu=True)
