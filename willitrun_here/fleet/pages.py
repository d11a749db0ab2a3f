"""The pages for people: rendered here, complete without JavaScript, every view an address."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlencode

import msgspec
from msgspec import Struct
from starlette.concurrency import run_in_threadpool
from starlette.responses import RedirectResponse, Response

from willitrun_catalog.errors import CatalogError
from willitrun_here.fleet import api, auth, query
from willitrun_here.fleet.detail import MeasuredRow, machine_detail
from willitrun_here.fleet.endpoint import Call, problem
from willitrun_here.fleet.errors import DocumentError
from willitrun_here.fleet.pictures import bars
from willitrun_probe.units import format_bytes, format_seconds, parse_bytes

if TYPE_CHECKING:
    from jinja2 import Environment

    from willitrun_here.fleet.app import Fleet

COOKIE = "wih_read"
COOKIE_S = 30 * 86400
ROWS_SHOWN = 200
STATIC = {"fleet.css": "text/css", "fleet.js": "text/javascript"}
SORTS = (("name", "Machine"), ("vram", "GPU memory"), ("free", "free"), ("ram", "RAM"), ("seen", "last seen"))


class PageFilter(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The form above the table of machines."""

    q: query.Words = ""
    label: query.Words = ""
    gpu: query.Words = ""
    min_free: query.Words = ""
    """A size as people write it: `24GiB`."""
    status: query.Words = ""
    sort: query.Sort = "name"
    after: query.Words = ""


class PageAsk(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The form of the model question; texts, so that a mistake is shown beside the form and not instead of it."""

    model: query.Words = ""
    context: query.Words = ""
    min_decode: query.Words = ""
    users: query.Words = ""


async def show_machines(fleet: Fleet, call: Call) -> Response:
    """Show the table of machines with its filter."""
    asked: PageFilter = call.query
    mistake, wanted = None, query.MachineFilter()
    try:
        wanted = _machine_filter(asked)
    except DocumentError as error:
        mistake = error.message
    page = await api.read(fleet, query.list_machines, wanted)
    count = await api.read(fleet, query.count_machines, wanted)
    return render(
        "machines.html",
        status=400 if mistake else 200,
        asked=asked,
        page=page,
        count=count,
        mistake=mistake,
        headers=[(label, *_sorting(asked, name)) for name, label in SORTS],
        next_link=_link("/", asked, after=page.next) if page.next else None,
        first_link=_link("/", asked, after="") if asked.after else None,
        csv_link="/api/v1/machines.csv?" + urlencode(_given(wanted)),
    )


async def show_machine(fleet: Fleet, call: Call) -> Response:
    """Show one machine: what it is, how its facts changed, what it measured against what was expected."""
    detail = await api.read(fleet, machine_detail, call.path["agent_id"])
    if detail is None:
        return render("message.html", status=404, title="No such machine", text="No machine has this id.")
    return render("machine.html", detail=detail, measured=[_against(run) for run in detail.measured])


async def show_ask(fleet: Fleet, call: Call) -> Response:
    """Show which machines run a model now, if idle, or not."""
    asked: PageAsk = call.query
    answer, mistake = None, None
    if asked.model.strip():
        try:
            answer = await run_in_threadpool(api.ask, fleet, _question(asked))
        except (DocumentError, CatalogError) as error:
            mistake = f"{error.message} {error.advice}".strip()
    return render(
        "ask.html",
        status=400 if mistake else 200,
        asked=asked,
        answer=answer,
        mistake=mistake,
        shown=ROWS_SHOWN,
        names=sorted(fleet.model_names()),
        together_link=_link("/plan", asked),
    )


async def show_plan(fleet: Fleet, call: Call) -> Response:
    """Show the groups of machines that run a model together, with the commands of every node."""
    asked: PageAsk = call.query
    answer, mistake = None, None
    try:
        answer = await run_in_threadpool(api.ask_together, fleet, _question(asked))
    except (DocumentError, CatalogError) as error:
        mistake = f"{error.message} {error.advice}".strip()
    return render("plan.html", status=400 if mistake else 200, asked=asked, answer=answer, mistake=mistake)


async def show_totals(fleet: Fleet, _call: Call) -> Response:
    """Show the fleet in sums and pictures."""
    sums: query.Totals = await api.read(fleet, query.totals)
    memory = [
        ("GPU memory", sums.vram_free_bytes, sums.vram_total_bytes),
        ("host memory", sums.ram_free_bytes, sums.ram_total_bytes),
    ]
    pictures = {
        "machines": bars([("live", sums.live), ("late", sums.late), ("gone", sums.gone)], "machines"),
        "gpus": bars(sorted(sums.gpus.items(), key=lambda item: -item[1])[:20], "GPUs"),
        "memory": bars(
            [
                (f"{name} {word}", value)
                for name, free, total in memory
                for word, value in (("free", free), ("total", total))
            ],
            "",
            format_bytes,
        ),
    }
    return render("totals.html", totals=sums, pictures=pictures)


async def show_login(_fleet: Fleet, call: Call) -> Response:
    """Ask for the read token."""
    return login_page(wrong="again" in call.request.query_params, status=200)


def login_page(*, wrong: bool, status: int) -> Response:
    """Build the page that asks for the read token."""
    return render("login.html", status=status, wrong=wrong)


async def log_in(fleet: Fleet, call: Call) -> Response:
    """Check the read token and keep it in a cookie that scripts cannot read and other sites cannot use."""
    given = parse_qs(call.body.decode("utf-8", "replace"), max_num_fields=4).get("token", [""])[0].strip()
    address = call.request.client.host if call.request.client is not None else "local"
    wait_s = fleet.mistakes.wait_s(address)
    if wait_s:
        return problem(429, "slow-down", "too many attempts", retry_after_s=max(1.0, wait_s))

    def holds() -> bool:
        with fleet.engine.connect() as connection:
            return auth.token_holds(connection, given, "read", now=fleet.clock())

    if not await run_in_threadpool(holds):
        return login_page(wrong=True, status=401)
    answer = RedirectResponse("/", 303)
    answer.set_cookie(
        COOKIE, given, max_age=COOKIE_S, httponly=True, samesite="strict", secure=fleet.options.secure_cookies
    )
    return answer


async def log_out(_fleet: Fleet, _call: Call) -> Response:
    """Forget the cookie."""
    answer = RedirectResponse("/login", 303)
    answer.delete_cookie(COOKIE)
    return answer


async def static(_fleet: Fleet, call: Call) -> Response:
    """Give the style sheet or the script."""
    name = call.path["name"]
    if name not in STATIC:
        return problem(404, "not-found", "nothing is here")
    return Response(_static_file(name), media_type=STATIC[name], headers={"Cache-Control": "max-age=3600"})


def render(template: str, *, status: int = 200, **values: Any) -> Response:
    """Render a page; everything put into it is escaped."""
    text = _environment().get_template(template).render(**values)
    return Response(text, status, media_type="text/html")


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined  # noqa: PLC0415 - heavy, and pages may never be asked

    environment = Environment(
        loader=PackageLoader("willitrun_here.fleet", "web/templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"size": format_bytes, "seconds": _ago, "moment": query.iso, "number": _number}
    return environment


@cache
def _static_file(name: str) -> bytes:
    return resources.files("willitrun_here.fleet").joinpath("web/static", name).read_bytes()


def _machine_filter(asked: PageFilter) -> query.MachineFilter:
    try:
        least = parse_bytes(asked.min_free) if asked.min_free.strip() else 0
        return msgspec.convert(
            {
                "q": asked.q.strip(), "label": asked.label.strip(), "gpu": asked.gpu.strip(),
                "min_free_bytes": least, "status": asked.status, "sort": asked.sort, "after": asked.after,
                "limit": ROWS_SHOWN,
            },
            query.MachineFilter,
        )  # fmt: skip
    except (ValueError, msgspec.ValidationError) as error:
        raise DocumentError(str(error)) from error


def _question(asked: PageAsk) -> api.Ask:
    given = {name: value for name, value in msgspec.to_builtins(asked).items() if value.strip()}
    try:
        return msgspec.convert(given, api.Ask, strict=False)
    except msgspec.ValidationError as error:
        raise DocumentError(str(error)) from error


def _sorting(asked: PageFilter, name: str) -> tuple[str, str]:
    """Return the address that sorts by a column, and how it is sorted now (for aria-sort)."""
    if asked.sort == name:
        return _link("/", asked, sort=f"-{name}", after=""), "ascending"
    return _link("/", asked, sort=name, after=""), "descending" if asked.sort == f"-{name}" else "none"


def _link(path: str, asked: Struct, **changes: Any) -> str:
    return f"{path}?{urlencode(_given(msgspec.structs.replace(asked, **changes)))}"


def _given(value: Any) -> dict[str, Any]:
    """Return the fields that differ from their defaults, for an address."""
    fields = msgspec.structs.fields(value)
    return {field.name: getattr(value, field.name) for field in fields if getattr(value, field.name) != field.default}


def _against(run: MeasuredRow) -> dict[str, Any]:
    """Hold a measured run against what was expected of it."""
    measured, expected = run.decode_tokens_per_s, run.expected_decode_tokens_per_s
    ratio = measured / expected if measured is not None and expected else None
    return {"run": run, "ratio": ratio}


def _ago(seconds: float) -> str:
    if seconds >= 2 * 86400:
        return f"{seconds / 86400:.0f} days"
    return f"{seconds / 3600:.1f} h" if seconds >= 2 * 3600 else format_seconds(seconds)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if value < 1000 else f"{value:,.0f}"  # noqa: PLR2004 - digits shown
