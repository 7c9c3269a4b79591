"""Settings of `mtrec report`."""

from mtrec_ray.config import Config


class ReportConfig(Config):
    """One page of figures."""

    results: list[str]
    """Folders or URIs of runs, evaluations, audits, searches and bundles, recognised by their files."""
    audit: str | None = None
    """Folder or URI of an audit, as if it were named among the results."""
    card: str | None = None
    """File or URI of an audit card for auditors, one page of the first audit; none by default."""
    out: str = "report.html"
    """File or URI of the page; SVG, PNG and CSV of each figure go into a folder beside it."""
