"""`hyimage bench`: its measurements put together. Every one has a file of its own."""

import typer

from cli.bench.adherence import bench_adherence
from cli.bench.compare import bench_compare
from cli.bench.load import LoadCommand, bench_load
from cli.bench.loading import bench_loading
from cli.bench.quality import bench_quality
from cli.bench.quantization import bench_quantization
from cli.bench.serve import bench_serve
from cli.bench.step import bench_step
from cli.bench.text import bench_text

bench = typer.Typer(no_args_is_help=True, help="Measure, as ratios within one run.")
bench.command("step")(bench_step)
bench.command("serve")(bench_serve)
bench.command("text")(bench_text)
bench.command("quality")(bench_quality)
bench.command("quantization")(bench_quantization)
bench.command("loading")(bench_loading)
bench.command("adherence")(bench_adherence)
bench.command("load", cls=LoadCommand)(bench_load)
bench.command("compare")(bench_compare)
