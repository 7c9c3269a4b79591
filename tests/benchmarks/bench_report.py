"""How long a report of many territories and combinations takes, and how large its page is.

    PYTHONPATH=. OMP_NUM_THREADS=1 python tests/benchmarks/bench_report.py [--territories 220] [--attributes 7]

Four models and three days with random figures, and an audit of every combination of the attributes (7: 127 of them).
Seconds are of one core: all of it is drawing.
"""

import argparse
import tempfile
import time
from pathlib import Path

from mtrec_ray.reports.config import ReportConfig
from mtrec_ray.reports.report import make_report
from tests.reports.made import write_audit, write_evaluation

VARIANTS = ("baseline", "baseline+upsampling", "mtl+upsampling", "mtl-slow+upsampling")


def main() -> None:
    """Print seconds and bytes of one report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--territories", type=int, default=220)
    parser.add_argument("--attributes", type=int, default=7)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        evaluation = write_evaluation(folder / "evaluation", chosen.territories, days=3, variants=VARIANTS)
        audit = write_audit(folder / "audit", attributes=chosen.attributes)
        out, before = folder / "report.html", time.process_time()
        made = make_report(ReportConfig(results=[str(evaluation)], audit=str(audit), out=str(out)))
        seconds = time.process_time() - before
        print(f"{len(made.metrics)} figures, {seconds:.1f} s of one core, {out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
