"""Restarts back off, hopeless starts end, and a silent worker is found out by what is normal."""

from server.engine.restarts import MAX_DELAY_S, RestartPolicy, StallWatch


def test_delays_double_up_to_a_minute() -> None:
    policy = RestartPolicy()
    delays = [policy.note_death(float(n), was_ready=True) for n in range(9)]
    assert delays == [1, 2, 4, 8, 16, 32, MAX_DELAY_S, MAX_DELAY_S, MAX_DELAY_S]


def test_deaths_of_long_ago_do_not_count() -> None:
    policy = RestartPolicy()
    for n in range(5):
        policy.note_death(float(n), was_ready=True)
    assert policy.note_death(10_000.0, was_ready=True) == 1.0


def test_the_third_start_in_a_row_that_fails_is_the_last() -> None:
    policy = RestartPolicy()
    assert policy.note_death(0.0, was_ready=False) is not None
    policy.note_ready()
    assert policy.note_death(1.0, was_ready=False) is not None
    assert policy.note_death(2.0, was_ready=False) is not None
    assert policy.note_death(3.0, was_ready=False) is None


def test_a_worker_may_be_silent_ten_times_as_long_as_its_longest_step() -> None:
    watch = StallWatch(1.0)
    watch.restart(0.0)
    for now in (0.5, 1.0, 1.5):
        watch.note_event(now, is_step=True)
    assert watch.limit_s == 5.0
    assert not watch.is_stalled(6.4)
    assert watch.is_stalled(6.6)


def test_the_floor_holds_for_fast_steps_and_ten_times_the_floor_before_the_first() -> None:
    watch = StallWatch(60.0)
    watch.restart(0.0)
    assert watch.limit_s == 600.0
    watch.note_event(100.0, is_step=True)
    watch.note_event(100.1, is_step=True)
    assert watch.limit_s == 60.0
    watch.forget()
    assert watch.limit_s == 600.0


def test_an_idle_worker_is_not_late_for_the_job_that_it_gets() -> None:
    watch = StallWatch(1.0)
    watch.note_event(0.0, is_step=True)
    watch.restart(1000.0)
    assert not watch.is_stalled(1000.5)
