"""Published results of conventional metrics, to stand beside one's own; every row names its protocol and source."""

from importlib import resources

import pandas as pd

WHOLE = "whole database, absolute values"  # how the protocol of benchmarks on all pairs of a database begins

# The names that sources give to the metrics of this package. FSIM is computed in colour by IQA-PyTorch, in grey by piq.
_NAMES = {"ms-ssim": "ms_ssim", "iw-ssim": "iw_ssim", "sr-sim": "sr_sim"}


def published_results(database: str | None = None) -> pd.DataFrame:
    """Published correlations of one database, or of all: `database, metric, srocc, krocc, plcc, protocol, source`.

    Metrics bear the names of `IQMS` where they are the same metric, else those of their source. Correlations
    are absolute values, NaN where a source has none. Sources differ in how they compute a metric, above all SSIM.
    """
    with resources.files("vtamiq.evaluation").joinpath("published_results.csv").open(encoding="utf-8") as file:
        table = pd.read_csv(file)
    of_iqa = table["source"].str.startswith("IQA-PyTorch")
    in_colour = (table["metric"] == "fsim") & of_iqa
    table["metric"] = table["metric"].replace(_NAMES).mask(in_colour, "fsimc")
    table["protocol"] = table["protocol"].mask(of_iqa & (table["database"] == "live"), table["protocol"] + ", old DMOS")
    if database is not None:
        table = table[table["database"] == database]
    return table.reset_index(drop=True)


def known_answer(database: str) -> dict[str, float] | None:
    """SROCC and KROCC of PSNR (mean over RGB) on a whole database, from benchmarks that computed them; None if unknown.

    That of LIVE is with its old DMOS (`load_database("live", realigned=False)`), as IQA-PyTorch has it.
    """
    table = published_results(database)
    table = table[(table["metric"] == "psnr") & table["protocol"].str.startswith(WHOLE)]
    return None if table.empty else {name: float(table[name].iloc[0]) for name in ("srocc", "krocc")}
