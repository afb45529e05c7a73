from tests.contract.conftest import one_thread  # noqa: F401
