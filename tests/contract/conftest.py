import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors are slower on many threads, and the order of additions is the same everywhere on one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
