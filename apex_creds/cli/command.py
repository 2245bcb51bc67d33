"""What makes a function a command: its options, its vault, its output.

Guarantee: of options before and after a command's name, the nearer wins. A passphrase is
asked for before the event loop runs, so that Ctrl-C at the prompt ends the program with the
terminal as it was; it is asked for only where there is a vault to open (or to make). What
older programs left beside the vault is migrated before a command works on it; what came of
that is on standard error and never an error of the command.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, TypeAlias, TypeVar, cast, get_args

import anyio
import typer

from apex_creds.cli.console import Report, Text, bars, note, safe
from apex_creds.cli.program import HELP, HomeOption, MasterOption, argument, flag, option
from apex_creds.documents.document import Header, parse
from apex_creds.documents.keystore import load_master, refuse_own_directory, root_header
from apex_creds.errors import CredentialNotFoundError, VaultNotFoundError
from apex_creds.fs.home import resolve_home
from apex_creds.keys import MasterKeyProvider, provider_from_uri
from apex_creds.keys.hierarchy import KEYSTORE
from apex_creds.keys.passphrase import terminal_prompt
from apex_creds.keys.provider import hold
from apex_creds.migration.legacy_files import is_due, is_legacy
from apex_creds.migration.progress import DOCUMENT
from apex_creds.model import Delivery, Origin, check_name
from apex_creds.policy import display
from apex_creds.storage.base import Storage, Stored, closing
from apex_creds.storage.file_storage import FileStorage
from apex_creds.storage.storage_factory import storage_for
from apex_creds.vault import Vault, unfinished

if TYPE_CHECKING:
    from apex_creds.migration import SourceReport

T = TypeVar("T")

LARGE_MIGRATION: Final = 500
"""Entries from which on a bar is shown."""
_NAMED: Final = 20
_PASSPHRASE: Final = "passphrase:"  # noqa: S105 - a scheme


# -- options -------------------------------------------------------------------------------


def parse_time(text: str) -> float:
    """A point in time as it is typed.

    Raises:
        InvalidInputError: It is none, or not in the future.
    """
    return display.parse_time(text, now=time.time())


def span(text: str) -> float:
    """Seconds of ``30d`` and the like.

    Raises:
        InvalidInputError: It is no span of time.
    """
    return display.parse_span(text)


def name_of(what: str) -> Callable[[str], str]:
    """Reads the name of something; the help shows its type by this function's name."""

    def read(text: str) -> str:
        return check_name(text, what=what)

    read.__name__ = "str"
    return read


JsonOption = Annotated[bool, flag("Print JSON.", "--json")]
ReasonOption = Annotated[
    str,
    typer.Option(
        "--reason",
        metavar="TEXT",
        help="Why; it is recorded in the log. Asked for otherwise.",
        show_default=False,
    ),
]
UntilOption = Annotated[
    float | None,
    option("WHEN", "2030-12-31, 12h, 30d; without end by default.", parser=parse_time),
]
ForceOption = Annotated[bool, flag("Even if standard output is not a terminal.", "--force")]
DeliveryOption = Annotated[
    Delivery | None,
    option(
        "HOW",
        "How it is sent: bearer, basic, aws4, path:TEXT{}, or scheme, header, cookie, query, "
        "json or form with :NAME.",
        parser=Delivery.parse,
    ),
]
OriginOption = Annotated[
    list[Origin] | None,
    option(
        "URL",
        "Where it may be sent, like https://api.example.com; repeat for more.",
        "--origin",
        parser=Origin.parse,
    ),
]
NameArgument = Annotated[
    str,
    argument("NAME", "The credential's name.", parser=name_of("name")),
]
ForOption = Annotated[
    str | None,
    option(
        "WHO",
        "The principal that it belongs to, as a user's id; nobody by default: it is shared.",
        "--for",
        parser=name_of("principal"),
    ),
]
PluginArgument = Annotated[str, argument("PLUGIN", "The plugin's id.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What ``--home`` and ``--master`` say, and which credential was named."""

    home: Path | None = None
    master: str | None = None
    named: str = ""

    @property
    def folder(self) -> Path:
        """The vault's directory."""
        return resolve_home(self.home)


def settings(
    ctx: typer.Context, home: Path | None, master: str | None, *, named: str = ""
) -> Settings:
    """The settings of a command, from its own options and those before its name."""
    outer = ctx.obj if isinstance(ctx.obj, Settings) else Settings()
    return Settings(
        home=outer.home if home is None else home,
        master=outer.master if master is None else master,
        named=named,
    )


# -- commands ------------------------------------------------------------------------------

Command: TypeAlias = Callable[..., None]
Work: TypeAlias = Callable[..., Awaitable[Text | None] | Text | None]


def command(*, asks_again: bool = False, keyless: bool = False) -> Callable[[Work], Command]:
    """Makes a command of a function, for typer.

    The function's first parameter may be a ``Vault``, which is opened for it and closed
    again, or ``Settings``; then the command has ``--home`` and ``--master``. It has
    ``--json`` if the function returns a ``Report``; a function that has a parameter
    ``json`` is asked for no such thing, and prints by itself. What it returns is printed.

    Args:
        asks_again: The master key may be needed more than once: a passphrase is asked for
            each time.
        keyless: It needs no master key, and has no ``--master``.
    """

    def decorate(work: Work) -> Command:
        signature = inspect.signature(work, eval_str=True)
        own = list(signature.parameters.values())
        first = own[0].annotation if own else None
        kinds = (signature.return_annotation, *get_args(signature.return_annotation))
        is_report = Report in kinds
        takes_settings = first in (Vault, Settings)
        if takes_settings:
            del own[0]
        added = [_parameter("json", JsonOption, False)] if is_report else []
        if takes_settings:
            added.append(_parameter("home", HomeOption))
        if takes_settings and not keyless:
            added.append(_parameter("master", MasterOption))

        @functools.wraps(work)
        def run(ctx: typer.Context, **options: object) -> None:
            as_json = is_report and bool(options.pop("json"))
            if takes_settings:
                home = cast("Path | None", options.pop("home"))
                master = cast("str | None", options.pop("master", None))
                named = str(options.get("name") or "")
                chosen = settings(ctx, home, master, named=named)
                if first is Vault:
                    made = with_vault(
                        chosen,
                        lambda vault: cast("Awaitable[Text | None]", work(vault, **options)),
                        asks_again=asks_again,
                    )
                else:
                    made = cast("Text | None", work(chosen, **options))
            else:
                made = cast("Text | None", work(**options))
            if made is not None:
                made.show(as_json=as_json)
                made.end()

        context = inspect.Parameter("ctx", _KEYWORD, annotation=typer.Context)
        parameters = [context, *(each.replace(kind=_KEYWORD) for each in own), *added]
        run.__dict__["__signature__"] = signature.replace(
            parameters=parameters, return_annotation=None
        )
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        # Help is folded to the terminal's width, not where the source is.
        run.__doc__ = re.sub(r"(?<=\S)\n(?=\S)", " ", inspect.cleandoc(work.__doc__ or ""))
        return run

    return decorate


_KEYWORD: Final = inspect.Parameter.KEYWORD_ONLY


def _parameter(name: str, annotation: object, default: object = None) -> inspect.Parameter:
    return inspect.Parameter(name, _KEYWORD, default=default, annotation=annotation)


def group(summary: str) -> typer.Typer:
    """A group of commands, which says what they are when it is named alone."""
    made = typer.Typer(context_settings=HELP, invoke_without_command=True)

    @made.callback(help=summary)
    def root(ctx: typer.Context, home: HomeOption = None, master: MasterOption = None) -> None:
        ctx.obj = settings(ctx, home, master)
        help_without_command(ctx)

    return made


def help_without_command(ctx: typer.Context) -> None:
    """Shows the help of a group that was named alone."""
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())
        raise typer.Exit


# -- the vault -----------------------------------------------------------------------------


def with_vault(
    chosen: Settings,
    work: Callable[[Vault], Awaitable[T]],
    *,
    asks_again: bool = False,
    migrates: bool = True,
) -> T:
    """Unseals the vault, runs ``work`` on it, seals it again.

    Args:
        chosen: Which vault.
        work: What to do.
        asks_again: A passphrase is asked for each time that the key is needed.
        migrates: What older programs left beside the vault, first.

    Raises:
        ApexCredsError: Anything that unsealing or ``work`` raises.
    """
    uri = master_uri(chosen, read_header(chosen))
    if asks_again and uri == _PASSPHRASE:
        provider = provider_from_uri(uri, prompt=terminal_prompt)
    else:
        provider = find_provider(uri)

    async def body() -> T:
        async with await Vault.unseal(chosen.home, master=provider) as vault:
            if migrates:
                await migrate_first(vault)
            try:
                return await work(vault)
            except CredentialNotFoundError as error:
                names = {info.name for info in await vault.list()}
                for meant in difflib.get_close_matches(
                    chosen.named, names - {chosen.named}, n=1
                ):
                    error.hint = f"Did you mean {meant}? {error.hint}"
                raise

    return anyio.run(body)


def master_uri(chosen: Settings, header: Header) -> str:
    """What ``--master`` says, else what the vault says.

    Raises:
        MasterKeyUnavailableError: Only the vault says so, and it is in its own directory.
    """
    if chosen.master:
        return chosen.master
    recorded = root_header(header).master.uri
    refuse_own_directory(recorded, chosen.folder)
    return recorded


def find_provider(uri: str, *, new: bool = False) -> MasterKeyProvider:
    """The provider for a URI; asks for its passphrase now, twice for a new one.

    Raises:
        InvalidInputError: The URI is not understood.
        MasterKeyUnavailableError: There is no terminal to ask on.
    """
    if uri != _PASSPHRASE:
        return provider_from_uri(uri)
    questions = ("Passphrase: ", "Passphrase again: ")[: 2 if new else 1]
    answers = [terminal_prompt(question) for question in questions]
    return provider_from_uri(uri, prompt=lambda _: answers.pop(0))


def read_header(chosen: Settings) -> Header:
    """What the key store says in clear; needs no key. It is not yet authenticated.

    Raises:
        VaultNotFoundError: There is no vault.
        StorageError: It can't be read safely.
        IntegrityError: It is malformed.
    """
    home = chosen.folder
    if is_legacy(home):
        raise VaultNotFoundError(
            f"The key store in {home} is an older program's.",
            hint="Take its credentials over with: apex-creds migrate",
        )

    async def load() -> Stored | None:
        async with closing(storage) as opened:
            return await opened.read(KEYSTORE)

    storage = storage_for(home)
    stored = anyio.run(load)
    if stored is None and isinstance(storage, FileStorage):
        raise unfinished.not_found(home)
    if stored is None:
        raise VaultNotFoundError(
            f"There is no vault where {home} says that it is.",
            hint="Check the database, and security/config.json.",
        )
    return parse(stored.data, section=KEYSTORE, vault_id=None).header


def with_master_key(
    chosen: Settings, work: Callable[[Vault, MasterKeyProvider], Awaitable[T]]
) -> T:
    """As ``with_vault``, with a provider that has the master key at hand.

    Where it comes from (a passphrase, a keyring's prompt) is asked once.
    """
    header, _ = anyio.run(read_root, storage_for(chosen.folder))
    provider = find_provider(master_uri(chosen, read_header(chosen)))

    async def body() -> T:
        with await load_master(provider, header) as key:
            held = hold(provider, version=root_header(header).master.version, key=key)
            async with await Vault.unseal(chosen.folder, master=held) as vault:
                await migrate_first(vault)
                return await work(vault, held)

    return anyio.run(body)


async def read_root(storage: Storage) -> tuple[Header, bytes]:
    """The key store as stored: its header, and all its bytes. Nothing is checked yet.

    The storage is closed.

    Raises:
        VaultNotFoundError: There is none.
    """
    from apex_creds.admin import master_recovery

    async with closing(storage):
        return await master_recovery.read_root(storage)


async def migrate_first(vault: Vault) -> None:
    """Migrates what older programs left beside the vault, and says what came of it."""
    if not is_due(vault):
        return
    from apex_creds.migration import on_unseal

    with bars(least=LARGE_MIGRATION) as update:
        report = await on_unseal(vault, progress=update)
    await take_config(vault)
    for source in report.sources:
        if source.problem:
            note(f"{source.path} was not migrated: {source.problem} {source.hint}")
            continue
        note(f"Migrated {source.path}: {fates(source)}.", style="green")
        if source.missing:
            note("See what is left: apex-creds migrate --dry-run")
        elif source.backups:
            note("When all works: apex-creds migrate finish erases the .bak files.")
        for text in (*source.notes, *left_to_do(source)):
            note(text)


def fates(source: SourceReport) -> str:
    """How many entries had which fate, in words."""
    counts = sorted(source.counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {fate.value}" for fate, count in counts) or "nothing in it"


def left_to_do(source: SourceReport) -> Iterator[str]:
    """Which credentials no plugin can use through a handle yet, and what helps."""
    if source.nowhere:
        names = ", ".join(map(safe, source.nowhere[:_NAMED]))
        more = f" and {len(source.nowhere) - _NAMED} more" if source.nowhere[_NAMED:] else ""
        yield f"May be sent nowhere yet: {names}{more}."
        yield "Let plugins use them: apex-creds edit NAME --origin URL [--delivery HOW]"


async def take_config(vault: Vault) -> None:
    """Makes policy of what a migrated configuration says about rotation."""
    if vault.store.storage.change_token(DOCUMENT) is not None:
        from apex_creds.compat.vault_session import take_intervals  # loads the scheduler

        await take_intervals(vault)
