"""The kinds of panels that the dashboards are made of.

Guarantee: a panel has a title, a description, a unit and queries that are filtered by the
dashboard's ``$job``; its place is given by the order and the widths alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import count
from typing import Final

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    timeseries,
)
from grafana_foundation_sdk.models import common as shapes
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import heatmap as heatmaps
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

JOB: Final = 'job=~"$job"'
"""Belongs into every selector."""
GREEN, ORANGE, RED, BLUE = "green", "orange", "red", "blue"

Steps = Sequence[tuple[float | None, str]]
Query = tuple[str, str]
"""An expression, and the legend of what it gives."""

_SOURCE: Final = models.DataSourceRef(type_val="prometheus", uid="$datasource")


def _target(query: Query, number: int, *, instant: bool) -> prometheus.Dataquery:
    expression, legend = query
    made = prometheus.Dataquery().expr(" ".join(expression.split())).legend_format(legend)
    made = made.ref_id(chr(ord("A") + number))
    return made.instant() if instant else made.range()


def _thresholds(steps: Steps) -> dashboard.ThresholdsConfig:
    made = [models.Threshold(value=value, color=color) for value, color in steps]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(made)


def number(
    title: str,
    description: str,
    *queries: Query,
    unit: str = "short",
    width: int = 4,
    steps: Steps = ((None, BLUE),),
    words: dict[str, tuple[str, str]] | None = None,
) -> stat.Panel:
    """Numbers as they are now.

    Args:
        title: Of the panel.
        description: What is to be known about it.
        *queries: What is shown.
        unit: Grafana's name of it.
        width: Of 24.
        steps: Colors, from which value on.
        words: By value: the text and color that are shown for it.
    """
    panel = stat.Panel().title(title).description(description).datasource(_SOURCE)
    panel = panel.unit(unit).height(4).span(width).thresholds(_thresholds(steps))
    panel = panel.color_mode(shapes.BigValueColorMode.BACKGROUND_SOLID)
    panel = panel.graph_mode(shapes.BigValueGraphMode.NONE).no_value("–")
    last = common.ReduceDataOptions().calcs(["lastNotNull"]).values(False)
    panel = panel.reduce_options(last)
    if words:
        shown = {
            value: models.ValueMappingResult(text=text, color=color, index=place)
            for place, (value, (text, color)) in enumerate(words.items())
        }
        panel = panel.mappings([models.ValueMap(options=shown)])
    for place, query in enumerate(queries):
        panel = panel.with_target(_target(query, place, instant=True))
    return panel


def lines(
    title: str,
    description: str,
    *queries: Query,
    unit: str = "short",
    width: int = 12,
    stacked: bool = False,
) -> timeseries.Panel:
    """Values over time.

    Args:
        title: Of the panel.
        description: What is to be known about it.
        *queries: What is shown.
        unit: Grafana's name of it.
        width: Of 24.
        stacked: As bars, one on the other.
    """
    panel = timeseries.Panel().title(title).description(description).datasource(_SOURCE)
    panel = panel.unit(unit).height(8).span(width)
    legend = common.VizLegendOptions().show_legend(True)
    legend = legend.display_mode(shapes.LegendDisplayMode.TABLE)
    legend = legend.placement(shapes.LegendPlacement.RIGHT).calcs(["lastNotNull", "max"])
    panel = panel.legend(legend.sort_by("Max").sort_desc(True))  # what is 0 comes last
    tooltip = common.VizTooltipOptions().mode(shapes.TooltipDisplayMode.MULTI)
    panel = panel.tooltip(tooltip.sort(shapes.SortOrder.DESCENDING))
    panel = panel.show_points(shapes.VisibilityMode.NEVER).fill_opacity(10)
    if stacked:
        stacking = common.StackingConfig().mode(shapes.StackingMode.NORMAL)
        panel = panel.draw_style(shapes.GraphDrawStyle.BARS).fill_opacity(80)
        panel = panel.stacking(stacking).line_width(0).min(0)
    for place, query in enumerate(queries):
        panel = panel.with_target(_target(query, place, instant=False))
    return panel


def ranking(
    title: str, description: str, query: Query, *, unit: str = "short", width: int = 12
) -> bargauge.Panel:
    """Bars as they are now, one for each series."""
    panel = bargauge.Panel().title(title).description(description).datasource(_SOURCE)
    panel = panel.unit(unit).height(8).span(width).min(0)
    panel = panel.orientation(shapes.VizOrientation.HORIZONTAL)
    panel = panel.display_mode(shapes.BarGaugeDisplayMode.BASIC)
    last = common.ReduceDataOptions().calcs(["lastNotNull"]).values(False)
    panel = panel.reduce_options(last).thresholds(_thresholds(((None, BLUE),)))
    return panel.with_target(_target(query, 0, instant=True))


def spread(title: str, description: str, query: Query, *, width: int = 12) -> heatmap.Panel:
    """A histogram over time, in seconds."""
    panel = heatmap.Panel().title(title).description(description).datasource(_SOURCE)
    panel = panel.height(8).span(width).calculate(False)
    panel = panel.y_axis(heatmap.YAxisConfig().unit("s"))
    color = heatmap.HeatmapColorOptions().mode(heatmaps.HeatmapColorMode.SCHEME)
    panel = panel.color(color.scheme("Blues").steps(32))
    target = _target(query, 0, instant=False).format(PromQueryFormat.HEATMAP)
    return panel.with_target(target)


Panels = Iterable[stat.Panel | timeseries.Panel | bargauge.Panel | heatmap.Panel]


def page(
    title: str, uid: str, description: str, rows: dict[str, Panels]
) -> dashboard.Dashboard:
    """A dashboard of rows, with the variables that all of them have."""
    made = dashboard.Dashboard(title).uid(uid).description(description).tags(["apex-creds"])
    made = made.refresh("30s").time("now-6h", "now").timezone("browser").readonly()
    made = made.tooltip(models.DashboardCursorSync.CROSSHAIR)
    made = made.with_variable(
        dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus")
    )
    made = made.with_variable(_jobs()).link(_others())
    numbers = count(1)
    for name, panels in rows.items():
        made = made.with_row(dashboard.Row(name).id(next(numbers)))
        for panel in panels:
            made = made.with_panel(panel.id(next(numbers)))
    return made


def _jobs() -> dashboard.QueryVariable:
    jobs = dashboard.QueryVariable("job").label("Service").datasource(_SOURCE)
    jobs = jobs.query("label_values(apex_creds_leases, job)").multi(True).include_all(True)
    every = models.VariableOption(text="All", value="$__all", selected=True)
    jobs = jobs.all_value(".*").current(every)
    return jobs.refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)


def _others() -> dashboard.DashboardLink:
    link = dashboard.DashboardLink("apex-creds").type(models.DashboardLinkType.DASHBOARDS)
    return link.tags(["apex-creds"]).as_dropdown(False).keep_time(True).include_vars(True)
