"""Suites of benchmarks, each with the settings that its figures are published with: `eval MODEL --suite`."""

from thinktune.evaluation.suites.benchmark import Benchmark, read_suite
from thinktune.evaluation.suites.results import BenchmarkScores, SuiteScores
from thinktune.evaluation.suites.run_suite import evaluate_suite

__all__ = ["Benchmark", "BenchmarkScores", "SuiteScores", "evaluate_suite", "read_suite"]
