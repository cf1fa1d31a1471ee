from dask_pools.errors import MisplacedTaskError
from dask_pools.guard import on_worker_of


def test_a_worker_of_the_pool_may_read(client):
    future = client.submit(on_worker_of, "ecmwf", "entry", "t[0:1]", resources={"pool-ecmwf": 0}, pure=False)
    assert future.result() is True


def test_a_worker_of_another_pool_may_not_and_the_error_names_entry_chunk_worker_and_pool(client):
    future = client.submit(
        on_worker_of, "ecmwf", "predictions", "t[0:1]", resources={"pool-eumetsat": 0}, pure=False
    )
    error = future.exception()  # what result() raises would keep the future alive
    assert isinstance(error, MisplacedTaskError)
    assert (error.entry, error.chunk, error.pool) == ("predictions", "t[0:1]", "ecmwf")
    assert error.worker in client.scheduler_info()["workers"]
    assert str(error).startswith(
        "t[0:1] of predictions lives in pool 'ecmwf', but was about to be accessed on"
    )


def test_outside_any_worker_it_is_for_the_caller_to_compare_versions():
    assert on_worker_of("ecmwf", "entry", "t[0:1]") is False
