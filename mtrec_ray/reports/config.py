"""Settings of `mtrec report`."""

from mtrec_ray.config import Config


class ReportConfig(Config):
    """One page of figures."""

    results: list[str]
    """Folders or URIs of runs, evaluations, audits, searches and bundles, recognised by their files."""
    audit: str | None = None
    """Folder or URI of an audit, as if it were named among the results."""
    out: str = "report.html"
    """File or URI of the page; SVG, PNG and CSV of each figure go into a folder beside it."""
