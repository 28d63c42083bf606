"""The fair queue: shares follow weights, nobody saves up, nobody starves."""

from hypothesis import given
from hypothesis import strategies as st

from pipeline.request import ImageRequest
from server.engine.messages import Job
from server.worker.fair_queue import FairQueue


def job(name: str, owner: str, weight: float = 1.0, priority: int = 0) -> Job:
    request = ImageRequest(prompt="a fox", num_steps=1, guidance=1.0, seeds=(1,))
    return Job(
        job_id=name,
        request=request,
        image_format="PNG",
        quality=90,
        owner=owner,
        weight=weight,
        priority=priority,
    )


def new_queue(*jobs: Job) -> FairQueue:
    queue = FairQueue(lambda job: 1.0)
    for each in jobs:
        queue.push(each)
    return queue


def drain(queue: FairQueue) -> list[str]:
    return [queue.pop().job_id for _ in range(len(queue))]


def test_one_owners_jobs_run_in_the_order_in_which_they_came() -> None:
    assert drain(new_queue(*(job(name, "a") for name in "xyz"))) == ["x", "y", "z"]


def test_a_single_job_does_not_wait_for_a_burst_of_another_owner() -> None:
    queue = new_queue(*(job(f"burst{n}", "a") for n in range(5)))
    queue.pop()
    queue.push(job("single", "b"))
    assert drain(queue)[:2] == ["single", "burst1"]


def test_shares_follow_the_weights() -> None:
    heavy = [job(f"h{n}", "heavy", weight=3.0) for n in range(30)]
    light = [job(f"l{n}", "light", weight=1.0) for n in range(30)]
    served = drain(new_queue(*heavy, *light))[:24]
    assert sum(name.startswith("h") for name in served) == 18


def test_an_owner_that_was_idle_has_not_saved_up() -> None:
    queue = new_queue(*(job(f"a{n}", "a") for n in range(20)))
    for _ in range(10):
        queue.pop()
    for n in range(10):
        queue.push(job(f"b{n}", "b"))
    served = drain(queue)[:6]
    assert sum(name.startswith("b") for name in served) == 3


def test_leaving_and_coming_back_gains_nothing() -> None:
    queue = new_queue(job("a0", "a"), job("b0", "b"))
    first = queue.pop()
    queue.push(job("again", first.owner))
    assert queue.pop().owner != first.owner


def test_priority_orders_the_jobs_of_one_owner_alone() -> None:
    queue = new_queue(job("low", "a"), job("high", "a", priority=5), job("other", "b"))
    order = drain(queue)
    assert order.index("high") < order.index("low")
    assert order.index("other") < order.index("low")


def test_a_removed_job_never_runs() -> None:
    queue = new_queue(job("x", "a"), job("y", "a"))
    assert queue.remove("x")
    assert not queue.remove("x")
    assert drain(queue) == ["y"]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(-2, 2)), max_size=25), st.randoms())
def test_the_order_that_it_shows_is_the_order_in_which_jobs_run(
    pushed: list[tuple[str, int]], random: object
) -> None:
    queue = new_queue()
    for number, (owner, priority) in enumerate(pushed):
        queue.push(job(str(number), owner, weight=1.0 + number % 3, priority=priority))
        if number % 4 == 3:
            queue.pop()
    shown = [each.job_id for each in queue]
    assert drain(queue) == shown


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=40))
def test_no_owner_waits_while_another_is_served_twice_as_much(owners: list[str]) -> None:
    queue = new_queue(*(job(str(number), owner) for number, owner in enumerate(owners)))
    served = dict.fromkeys(owners, 0)
    while len(queue):
        waiting = {each.owner for each in queue}
        owner = queue.pop().owner
        served[owner] += 1
        assert all(served[owner] <= served[other] + 1 for other in waiting)
