"""A new sweep: model and data, what they look like, a preset, its settings, the file that these
make, its check, and its start. The file is the truth: each field shows and changes one place of it.
"""

import json
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from nicegui import background_tasks, events, html, ui

from sweeps.ui.drafts import Draft, read
from sweeps.ui.files import UPLOADS, claim, plain_name
from sweeps.ui.listing import list_sweeps
from sweeps.ui.looking import Look, look
from sweeps.ui.pages.checked import show_plan
from sweeps.ui.pages.fields import Field, column_field, text, whole
from sweeps.ui.pages.frame import (
    WRONG,
    aside,
    command_line,
    framed,
    line_of,
    path_to,
    section,
    told,
)
from sweeps.ui.presets import OWN, begun_from, methods_of, presets_for, spaces_for, with_space
from sweeps.ui.yaml_text import tree_of, value_at, with_value, without
from trainables.tasks import TASKS

MODEL_HINT = (
    "A name of the Hugging Face hub, a folder, or the folder of an earlier sweep, whose winner it"
    " then is"
)
DATA_HINT = (
    "A file (CSV, JSON lines, Parquet, text, ...), a folder, a URL or hf:owner/name of the hub"
)


def build(storage: Path) -> None:
    @ui.page("/new")
    async def new() -> None:
        with framed("New sweep"):
            winners = [each.name for each in await aside(list_sweeps, storage) if each.has_winner]
            form = Form(storage, [str(storage / name) for name in winners])
        ui.context.client.on_delete(form.draft.cancel)


class Form:
    """One browser's form, and the file that it makes."""

    def __init__(self, storage: Path, winners: list[str]) -> None:
        self._storage, self.draft = storage, Draft(storage=storage)
        self._look: Look | None = None
        self._fields: dict[str, Field] = {}
        """What shows a place of the file, by its key."""
        self._by_hand = False
        """Whether the file itself was changed, since the form has begun it."""
        self._chosen: tuple[str, str | None] = ("", None)
        """Task and preset of it."""
        self._own_space: object = None
        """That stands in the preset itself."""
        self._showing = False
        """Whether fields are being set to what stands in the file."""
        self._begin(winners)
        self._rest = html.div()
        self._rest.set_visibility(False)

    # --- model and data ---

    def _begin(self, winners: list[str]) -> None:
        with section("1. Model and data"):
            self._model = ui.input("Base model").props(f'outlined hint="{MODEL_HINT}"')
            # which the field asks for by this name
            with html.datalist(id=f"{self._model.html_id}-datalist"):
                for winner in winners:
                    html.option(value=winner)
            self._data = ui.input("Data").props(f'outlined hint="{DATA_HINT}"')
            for key, element in (("model.name", self._model), ("data.train", self._data)):
                element.on_value_change(lambda event, key=key: self._set(key, text(event.value)))
            self._upload = ui.upload(on_upload=self._keep, auto_upload=True).classes("hidden")
            with html.div().classes("row"):
                button = ui.button("Upload a file").props("outline")
                pick = f"() => runMethod({self._upload.id}, 'pickFiles', [])"
                button.on("click", js_handler=pick)
                ui.button("Look at the data", on_click=told(self._look_at))
            self._looked = ui.label().props("role=status").classes("muted")

    async def _keep(self, event: events.UploadEventArguments) -> None:
        self._upload.reset()
        try:
            file = claim(self._storage / UPLOADS, plain_name(event.file.name))
            try:
                await event.file.save(file)
            except OSError:
                file.unlink()
                raise
        except WRONG as error:
            self._data.error = line_of(error)
            return
        self._data.value = str(file)
        self._say(f"Kept as {file}.")
        await self._look_at()

    async def _look_at(self) -> None:
        self._data.error = None
        self._say("Reading the first rows …")
        try:
            found = await aside(look, (self._data.value or "").strip())
        except WRONG as error:
            self._say("")
            self._data.error = line_of(error)
            return
        if not await self._may_go():
            self._say("")
            return
        self._look = found
        self._say(f"{len(found.columns)} column(s); {found.task}, as {found.why}.")
        self._draw()

    def _say(self, words: str) -> None:
        self._looked.text = words

    # --- the rest, once the data are known ---

    def _draw(self) -> None:
        assert self._look is not None, "drawn once the data are known"
        self._rest.clear()
        self._rest.set_visibility(True)
        self._fields = {
            "model.name": Field(self._model, text),
            "data.train": Field(self._data, text),
        }
        with self._rest:
            with section("2. What is learnt"):
                _draw_rows(self._look)
                self._task = ui.select(
                    {name: f"{name}: {task.what}" for name, task in TASKS.items()},
                    label="Task",
                    value=self._look.task,
                    on_change=self._task_chosen,
                ).props("outlined")
                self._preset = ui.select(
                    [], label="Start from (writes the file anew)", on_change=self._preset_chosen
                ).props("outlined")
                self._columns = html.div().classes("fields")
            with section("3. Settings"):
                self._draw_settings()
            with section(
                "4. The sweep file",
                "What the form does is this file, and this file is what is run. Change it as you"
                " like; docs/getting-started.md and sweeps/reference.yaml tell all settings.",
            ):
                self._text = ui.textarea("Sweep file (YAML)", on_change=self._typed)
                self._text.props(
                    'outlined autogrow debounce=400 input-class="yaml" spellcheck=false'
                )
                self._problem = ui.label().props("role=alert").classes("wrong")
            with section("5. Check and start"):
                self._draw_check()
        self._show_task()

    def _draw_settings(self) -> None:
        with html.div().classes("fields"):
            self._field("name", ui.input("Name"), text)
            self._field("search.trials", ui.number("Trials", min=1, step=1), whole)
            budget = ui.input("Time budget").props('hint="Such as 30m, 8h or 2d; empty: none"')
            self._field("search.time_budget", budget, text)
            self._epochs = ui.number("Epochs", min=1, step=1, on_change=self._space_chosen)
            self._epochs.props('outlined hint="Empty: the search space says"')
            self._space = ui.select({}, label="Search space", on_change=self._space_chosen)
            self._space.props("outlined").classes("wide")
            self._methods = ui.select(
                [], label="Methods", multiple=True, on_change=self._space_chosen
            )
            self._methods.props(
                'outlined use-chips hint="None: all, of auto those that its rules choose"'
            )
            self._methods.classes("wide")

    def _draw_check(self) -> None:
        self._commands = html.div()
        with html.div().classes("row"):
            self._check = ui.button("Check", on_click=told(self._check_it))
            self._cancel = ui.button("Cancel the check", on_click=self.draft.cancel)
            self._cancel.props("outline").set_visibility(False)
            self._start = ui.button("Start", on_click=told(self._start_it))
        self._checked = html.div(role="status")
        self._start.disable()

    def _field(
        self, key: str, element: ui.input | ui.number | ui.select, of: Callable[[object], object]
    ) -> None:
        """A field that shows what stands at `key`."""
        element.props("outlined")
        element.on_value_change(lambda event: self._set(key, of(event.value)))
        self._fields[key] = Field(element, of)

    # --- what is chosen ---

    def _task_chosen(self) -> Awaitable[None] | None:
        return None if self._showing else self._anew(self._show_task)

    def _preset_chosen(self) -> Awaitable[None] | None:
        return None if self._showing else self._anew(self._show_preset)

    def _show_task(self) -> None:
        """The presets and columns of the task, and a file that starts from the first."""
        with self._quietly():
            presets = presets_for(self._task.value)
            self._preset.set_options(presets, value=next(iter(presets)))
            self._draw_columns()
        self._show_preset()

    async def _anew(self, begin: Callable[[], None]) -> None:
        """Begin another file, where what was changed by hand may go; else what was chosen before
        stands again.
        """
        if await self._may_go():
            begin()
        else:
            with self._quietly():
                self._task.value, self._preset.value = self._chosen

    async def _may_go(self) -> bool:
        """Whether what was changed by hand is nothing, or may go."""
        if not self._by_hand:
            return True
        with ui.dialog() as dialog, ui.card():
            html.p("The sweep file was changed by hand. Write it anew?")
            with html.div().classes("row"):
                ui.button("Write it anew", on_click=lambda: dialog.submit(True))
                ui.button("Keep it", on_click=lambda: dialog.submit(False)).props("outline")
        return bool(await dialog)

    def _draw_columns(self) -> None:
        assert self._look is not None, "drawn once the data are known"
        for task in TASKS:
            for key in _columns_of(task):
                self._fields.pop(key, None)
        self._columns.clear()
        with self._columns:
            for key in (*_columns_of(self._task.value), "data.group"):
                self._field(key, column_field(key, self._look.columns), text)

    def _show_preset(self) -> None:
        assert self._look is not None, "shown once the data are known"
        task = self._task.value
        self._chosen, self._by_hand = (task, self._preset.value), False
        model = (self._model.value or "").strip()
        begun = begun_from(self._preset.value, self._look, task, model, str(self._storage))
        space = value_at(tree_of(begun), "search.space")
        self._own_space = space if isinstance(space, Mapping) else None
        own = {OWN: "As the file that this starts from has it"} if self._own_space else {}
        with self._quietly():
            self._space.set_options({**own, **spaces_for(task)}, value=OWN if own else space)
            self._methods.set_options(methods_of(space), value=[])
            self._epochs.value = None
        self._written(begun)

    def _space_chosen(self) -> None:
        if self._showing:
            return
        space = self._own_space if self._space.value == OWN else self._space.value
        known = methods_of(space)
        if self._methods.options != known:
            with self._quietly():
                self._methods.set_options(known, value=[])
        found = whole(self._epochs.value)
        epochs = found if isinstance(found, int) else None
        self._change(lambda old: with_space(old, space, self._methods.value, epochs))

    def _set(self, key: str, value: object) -> None:
        """Change the file at one place. value: None takes it away."""
        if self._showing or self._look is None:
            return

        def changed(old: str) -> str:
            if value_at(tree_of(old), key) == value:
                return old
            return without(old, key) if value is None else with_value(old, key, value)

        self._change(changed)

    def _change(self, of: Callable[[str], str]) -> None:
        """The file, where it can be read."""
        try:
            new = of(self._content)
        except WRONG as error:
            self._tell_problem(line_of(error))
            return
        if new != self._content:
            self._written(new)

    # --- the file ---

    def _written(self, content: str) -> None:
        with self._quietly():
            self._text.value = content
        self._edited()

    def _typed(self) -> None:
        if not self._showing:
            self._by_hand = True
            self._edited()

    def _edited(self) -> None:
        """Fields show what stands in the file now, and what is wrong with it."""
        self._start.disable()
        try:
            tree = tree_of(self._content)
        except WRONG:
            tree = None  # what is wrong is told below
        if tree is not None:
            with self._quietly():
                self._follow(tree)
        background_tasks.create(self._read())

    def _follow(self, tree: object) -> None:
        task, space = value_at(tree, "task"), value_at(tree, "search.space")
        if task in TASKS and task != self._task.value:
            self._task.value = task
            presets = presets_for(self._task.value)
            self._preset.set_options(presets, value=None)
            self._chosen = (self._task.value, None)
            self._draw_columns()
        if isinstance(space, str) and space in self._space.options:
            self._space.value = space
        epochs = value_at(tree, "train.epochs")
        self._epochs.value = epochs if isinstance(epochs, int) else None
        for key, field in self._fields.items():
            field.show(value_at(tree, key))

    async def _read(self) -> str | None:
        """The sweep's name, where the file is right."""
        content = self._content
        try:
            config = await aside(read, content, self._storage)
        except WRONG as error:
            if content == self._content:
                self._tell_problem(line_of(error))
            return None
        if content == self._content:
            self._tell_problem("")
        return config.name

    def _tell_problem(self, line: str) -> None:
        """Beside the field that it is about, and below the file."""
        self._problem.text = line
        key = line.partition(":")[0]
        shown = {where: field.element for where, field in self._fields.items()} | {
            "search.space": self._space,
            "train.epochs": self._epochs,
            "train.method": self._methods,
            "task": self._task,
        }
        near = [each for each in shown if f"{key}.".startswith(f"{each}.")]
        # of a section what stands in it
        near = near or [each for each in shown if each.startswith(f"{key}.")]
        for each, element in shown.items():
            element.error = line if line and each in near[:1] else None

    @property
    def _content(self) -> str:
        """Of the file, as it stands on the page."""
        return self._text.value or ""

    def _quietly(self) -> "_Quietly":
        return _Quietly(self)

    # --- check and start ---

    async def _check_it(self) -> None:
        self._check.disable()
        name = await self._read()
        if name is None:
            self._check.enable()
            return
        content = self._content
        self.draft.write(content, name)
        self._commands.clear()
        with self._commands:
            command_line(self.draft.check_command, "Check it")
            command_line(self.draft.run_command, "Start it")
        self._checking(True)
        try:
            plan = await self.draft.check()
        except WRONG as error:
            self._tell_problem(line_of(error))
            self._checking(False)
            with self._checked:
                html.p(line_of(error)).classes("wrong")
            return
        self._checking(False)
        with self._checked:
            show_plan(plan, path_to("checked", self.draft.page.name.removesuffix(".check.html")))
        if content == self._content:
            self._start.enable()

    def _checking(self, on: bool) -> None:
        self._check.set_enabled(not on)
        self._cancel.set_visibility(on)
        self._start.disable()
        self._checked.clear()
        if on:
            with self._checked:
                html.p("Reading all rows, and trying every method at a size of seconds …")

    async def _start_it(self) -> None:
        self._start.disable()
        started = await aside(self.draft.run)
        ui.navigate.to(path_to("sweep", started.name))


class _Quietly:
    """Inside, fields are set without changing the file."""

    def __init__(self, form: Form) -> None:
        self._form = form

    def __enter__(self) -> None:
        self._before, self._form._showing = self._form._showing, True

    def __exit__(self, *_: object) -> None:
        self._form._showing = self._before


def _draw_rows(found: Look) -> None:
    with html.div(tabindex=0, role="region", aria_label="First rows").classes("table"):
        with html.table():
            with html.thead(), html.tr():
                for column in found.columns:
                    html.th(column, scope="col")
            with html.tbody():
                for row in found.rows:
                    with html.tr():
                        for column in found.columns:
                            html.td(_short(row.get(column)))


def _short(value: object) -> str:
    found = value if isinstance(value, str) else ""
    if value is not None and not isinstance(value, str):
        found = json.dumps(value, ensure_ascii=False, default=str)
    return found if len(found) <= 160 else f"{found[:160]} …"


def _columns_of(task: str) -> tuple[str, ...]:
    """The settings that name them."""
    return tuple(f"data.{name}" for name in TASKS[task].format.columns)
