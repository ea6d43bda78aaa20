"""Fuzzing of all that reads data, guided by coverage (atheris, which is libFuzzer for Python).

    pip install atheris            # in an environment of its own that has this project's packages, too
    python tests/fuzz/readers.py files OUT -max_total_time=3600
    python tests/fuzz/readers.py rows OUT -max_total_time=3600
    python tests/fuzz/readers.py files --replay OUT/files/faults/*    # needs no atheris

`files` reads bytes as a file of every kind, plain and compressed, and its rows by every task; `rows` reads JSON as a
row of a conversation, and renders and tokenises it with every chat template of the tests. Nothing but an InputError
(BadRow) may come of an input, within 5 seconds of a core and 1 GiB, and what is stored of a row must be the same when
it is read back. A fault is written to OUT/TARGET/faults once per kind, with its traceback beside it, and the
run goes on; what kills the process (a crash in C++) is written there by libFuzzer. What was found to reach new
code is kept in OUT/TARGET/corpus, from which the next run goes on. All else is passed on to libFuzzer.
"""

import argparse
import bz2
import gzip
import hashlib
import importlib
import io
import json
import lzma
import random
import resource
import sys
import tempfile
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

SECONDS, KIBIBYTES = 5.0, 1 << 20  # that one input may take, of a core's time and of memory
LONGEST = 1 << 14  # bytes of an input

TEXT = (".csv", ".tsv", ".jsonl", ".json", ".txt")
BINARY = (".parquet", ".arrow")
PACKED = ("", ".gz", ".bz2", ".xz", ".zst")
BROKEN = len(PACKED)  # of the byte that says how a file is packed: from here on it is not packed

TALK = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "Q"},
    {"role": "assistant", "content": "A"},
]
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    },
}
ROWS = (
    {"text": "One, two.", "label": "a", "group": 1, "n": 0.5},
    {"messages": TALK},
    {"messages": json.dumps(TALK)},
    {
        "messages": [
            {"role": "developer", "content": "D"},
            {"role": "user", "content": [{"type": "text", "text": "Q"}]},
            {"role": "assistant", "content": "", "tool_calls": [CALL], "reasoning_content": "T"},
            {"role": "tool", "content": "R", "tool_call_id": "c1"},
            {"role": "assistant", "content": "<think>\nT\n</think>\n\nA", "weight": 0.5},
        ],
        "tools": [TOOL],
        "documents": [{"title": "t", "text": "x"}],
    },
    {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "function_call": CALL["function"]}], "functions": [TOOL["function"]]},
    {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}], "system": "S"},
    {"prompt": "Q", "completion": "A", "weight": 0.5},
    {"prompt": TALK[:2], "completion": TALK[2:], "reasoning_content": "T"},
    {"instruction": "Q", "input": "I", "output": "A", "history": [["Q0", "A0"]]},
    {"prompt": "Q", "chosen": "A", "rejected": "B"},
)  # fmt: skip
NAMES = tuple(
    "messages conversations prompt completion instruction input output history chosen rejected system tools functions"
    " documents weight loss train role from content value tool_calls function_call tool_call_id id type function name"
    " arguments parameters properties text reasoning reasoning_content thinking role user assistant tool developer"
    " human gpt".split()
)
LEAVES = (
    None, True, False, 0, 1, -1, 0.5, 2, 10**400, 1e308, float("nan"), float("inf"), "", " ", "\n", "A", "Q", "user", "assistant",
    "system", "tool", "\ud800", "\x00", "<think>", "</think>", "<|im_end|>", "{{ x }}", "\ue000\ue001", "[]", "{}", "[[", "1e999",
    "é́", "😀", "ﬁ", "\u2028", "\r", "x" * 3000, "[" * 3000, [], {}, [[]], "null",
)  # fmt: skip


# --- What is done with an input ---


class Targets:
    def __init__(self, scratch: Path) -> None:
        from tests.trainables.tasks.test_chat_templates import KINDS, tokenizer_of
        from trainables.tasks.instruction.templates import PRESETS

        self.scratch = scratch
        self.templates = [*KINDS, *PRESETS, "none"]
        self.tokenizer_of = tokenizer_of
        self.presets = PRESETS

    def files(self, data: bytes) -> None:
        """The first bytes: kind, compression, settings, template."""
        from trainables.data.config import DataConfig
        from trainables.data.sources import open_sources

        if len(data) < 4:
            return
        path = self.scratch / f"data{_suffixes(data)}"
        path.write_bytes(_packed(data))
        (source,) = open_sources(DataConfig(train=str(path)), "train")
        rows = list(source.rows())
        source.fingerprint()
        settings = _settings(source.columns, data[2])
        self._records(source, rows, DataConfig(train=str(path), **settings), data[3])

    def _records(self, source, rows, config, template: int) -> None:
        from trainables.data.records import Record
        from trainables.errors import InputError
        from trainables.tasks import TASKS

        for name, task in TASKS.items():
            try:
                reader = task.format.reader(source, config)
            except InputError as error:
                _let_pass(error)
                continue
            records = []
            for record in map(reader.attempt, rows):
                if isinstance(record, Record):
                    _check_stored(record)
                    records.append(record)
                else:
                    _let_pass(record)
            if name == "instruction":
                self._rendered(records[:20], template)

    def rows(self, data: bytes) -> None:
        """The first bytes: settings, template; then a row as JSON."""
        from trainables.data.config import DataConfig
        from trainables.data.readers import JSONFault, parse_json
        from trainables.data.records import Record
        from trainables.data.rows import Row
        from trainables.tasks.instruction.reading import conversation_reader, preference_reader

        try:
            given = parse_json(data[2:].decode(errors="surrogatepass"))
        except (JSONFault, UnicodeDecodeError):
            return
        if not isinstance(given, dict) or len(data) < 4:
            return
        row = Row(key="data.train", place="row 1", columns=given)
        template = self.templates[data[1] % len(self.templates)]
        config = DataConfig(train="x", chat_template="none" if template == "none" else None)
        for make in (conversation_reader, preference_reader):
            try:
                record = make(tuple(given), "data.train", "x", config).attempt(row)
            except Exception as error:
                _let_pass(error)
                continue
            if not isinstance(record, Record):
                _let_pass(record)
                continue
            _check_stored(record)
            if make is conversation_reader:
                self._rendered([record], data[1], data[0])

    def _rendered(self, records, template: int, settings: int = 0) -> None:
        from trainables.errors import InputError
        from trainables.tasks.instruction.tokens import tokeniser

        name = self.templates[template % len(self.templates)]
        tokenizer = self.tokenizer_of("chatml" if name in (*self.presets, "none") else name)
        made = tokeniser(
            tokenizer,
            name if name in (*self.presets, "none") else None,
            reasoning=("train", "keep", "drop")[settings % 3],
            train_on=("all_answers", "last_answer")[settings // 3 % 2],
        )
        for row in made.tokenise(records):
            if isinstance(row, InputError):
                _let_pass(row)
        for record in records:
            try:
                text, spans = made.text(record)
            except Exception as error:
                _let_pass(error)
            else:
                assert all(0 <= s.start < s.end <= len(text) for s in spans), spans


def _let_pass(error: Exception) -> None:
    """Raise all but what a user is told in a line."""
    from trainables.errors import InputError

    if not isinstance(error, InputError):
        raise error
    assert len(str(error).splitlines()) == 1, f"not a line: {str(error)!r}"
    str(error).encode()  # it can be printed


def _check_stored(record) -> None:
    text = json.dumps(record.value, ensure_ascii=False)
    text.encode()
    assert json.loads(text) == record.value, "it is stored otherwise"


def _suffixes(data: bytes) -> str:
    kind = (*TEXT, *BINARY)[data[0] % len((*TEXT, *BINARY))]
    return kind if kind in BINARY else kind + PACKED[data[1] % len(PACKED)]


def _packed(data: bytes) -> bytes:
    """What is read: packed as its name says, or, by every other value of the byte, as it is."""
    content = data[4:]
    if data[1] % (2 * len(PACKED)) >= BROKEN or "." not in _suffixes(data)[1:]:
        return content
    import zstandard

    pack = {
        ".gz": gzip.compress,
        ".bz2": bz2.compress,
        ".xz": lzma.compress,
        ".zst": zstandard.ZstdCompressor().compress,
    }
    return pack["." + _suffixes(data).rsplit(".", 1)[1]](content)


def _settings(columns: tuple[str, ...], which: int) -> dict[str, str]:
    """Of some inputs, other columns than those that are so named by default."""
    if which % 4 == 0 or not columns:
        return {}
    first, last = columns[0], columns[-1]
    beside = {"group": first, "slice": last} if which % 4 == 3 else {}
    return {"text": first, "label": last, **beside}


# --- Inputs ---


def file_seeds() -> list[bytes]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = {
        ".csv": b'text,label\r\n"One, ""two"".\nThree",a\r\nFour,b\r\n',
        ".tsv": b'text\tlabel\nOne "two"\ta\n"Fo""ur"\tb\n',
        ".jsonl": "".join(json.dumps(row) + "\n" for row in ROWS[:2]).encode(),
        ".json": json.dumps(ROWS[:2]).encode(),
        ".txt": "Öne.\r\nTwo.\n".encode(),
    }
    csv = "messages,label\n" + '"' + json.dumps(TALK).replace('"', '""') + '",1\n'
    found = [
        bytes([i, pack, 1, 0]) + texts[kind] for i, kind in enumerate(TEXT) for pack in range(5)
    ]
    found += [
        bytes([i, 5 + n, 0, 0]) + _pack(n, texts[kind])
        for i, kind in enumerate(TEXT)
        for n in (1, 2, 3, 4)
    ]
    found += [bytes([2, 0, 0, i]) + json.dumps(row).encode() for i, row in enumerate(ROWS)]
    found += [
        bytes([0, 0, 0, 0]) + csv.encode(),
        bytes([2, 0, 0, 0]) + "\ufefftext".encode("utf-16"),
    ]
    tables = [
        pa.table({"text": ["One", "Two", None], "label": [1, 2, 3]}),
        pa.Table.from_pylist([ROWS[1], ROWS[4]]),
        pa.Table.from_pylist([ROWS[6], ROWS[8]]),
        pa.table({"text": pa.array(["a", "b"]).dictionary_encode(), "n": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int32()))}),
        pa.table({"text": pa.array([1, 2], pa.timestamp("ns")), "label": pa.array([b"\xff", None], pa.binary())}),
    ]  # fmt: skip
    for table in tables:
        for write in (pq.write_table, _write_stream, _write_file):
            sink = io.BytesIO()
            write(table, sink)
            found.append(
                bytes([len(TEXT) + (write is not pq.write_table), 0, 1, 0]) + sink.getvalue()
            )
    return found


def _pack(number: int, content: bytes) -> bytes:
    return _packed(bytes([0, number, 0, 0]) + content)


def _write_stream(table, sink) -> None:
    import pyarrow as pa

    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def _write_file(table, sink) -> None:
    import pyarrow as pa

    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def row_seeds() -> list[bytes]:
    return [
        bytes([i, t]) + json.dumps(row).encode() for t in range(20) for i, row in enumerate(ROWS)
    ]


def mutated_row(data: bytes, most: int, seed: int) -> bytes:
    """An input of `rows` with a value of its JSON replaced, doubled, taken out, renamed, or put into another."""
    import atheris

    draw = random.Random(seed)
    if draw.random() < 0.2:
        return atheris.Mutate(data, most)
    try:
        value = json.loads(data[2:])
        for _ in range(draw.randint(1, 3)):
            value = _changed(value, draw)
        text = json.dumps(value, ensure_ascii=draw.random() < 0.5).encode(errors="surrogatepass")
    except (ValueError, RecursionError):
        return atheris.Mutate(data, most)
    head = bytes(draw.randrange(256) if draw.random() < 0.2 else byte for byte in data[:2])
    return (head + text)[:most]


def _changed(value: object, draw: random.Random) -> object:
    if isinstance(value, dict) and value and draw.random() < 0.8:
        return _changed_object(dict(value), draw)
    if isinstance(value, list) and value and draw.random() < 0.8:
        items, at = list(value), draw.randrange(len(value))
        way = draw.random()
        if way < 0.7:
            items[at] = _changed(items[at], draw)
        elif way < 0.8:
            del items[at]
        else:
            items.insert(draw.randrange(len(items) + 1), draw.choice(items))
        return items
    if isinstance(value, str) and draw.random() < 0.5:
        at = draw.randrange(len(value) + 1)
        return value[:at] + str(draw.choice(LEAVES)) + value[at:]
    way = draw.random()
    if way < 0.1:
        return json.dumps(value)
    if way < 0.2:
        return [value]
    if way < 0.3:
        return {draw.choice(NAMES): value}
    if way < 0.4:
        return draw.choice(draw.choice([*TALK, CALL, TOOL, *ROWS]).copy().popitem())
    return draw.choice(LEAVES)


def _changed_object(items: dict, draw: random.Random) -> dict:
    name, way = draw.choice([*items]), draw.random()
    if way < 0.7:
        items[name] = _changed(items[name], draw)
    elif way < 0.8:
        del items[name]
    elif way < 0.9:
        items[draw.choice(NAMES)] = items.pop(name)
    else:
        items[draw.choice(NAMES)] = draw.choice(LEAVES)
    return items


# --- The run ---


class Faults:
    """Written once per kind: by the exception and the line of this project that it came from."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._known: set[str] = set()

    def attempt(self, target, data: bytes) -> None:
        began, held = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            target(data)
        except Exception as error:
            try:
                _let_pass(error)
            except Exception as fault:
                self.note(_kind(fault), data, traceback.format_exc())
        if (seconds := time.process_time() - began) > SECONDS:
            self.note(f"slow {int(seconds)} s", data, f"{seconds:.1f} s")
        more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held
        if more > KIBIBYTES:
            self.note("memory", data, f"{more >> 10} MiB")

    def note(self, kind: str, data: bytes, why: str) -> None:
        if kind in self._known:
            return
        self._known.add(kind)
        path = self._folder / hashlib.sha256(kind.encode()).hexdigest()[:12]
        path.write_bytes(data)
        path.with_suffix(".txt").write_text(f"{kind}\n\n{why}", errors="backslashreplace")
        print(f"FAULT {kind}: {path}", flush=True)


def _kind(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if f"{ROOT}/trainables" in frame.filename]
    last = (ours or frames)[-1]
    return f"{type(error).__name__} {Path(last.filename).name}:{last.lineno}"


def fuzz(target: str, folder: Path, options: list[str]) -> None:
    import atheris

    for name in ("datasets", "pyarrow.parquet", "transformers"):
        importlib.import_module(name)  # before, so that these are not instrumented
    with atheris.instrument_imports(include=["trainables.data", "trainables.tasks.instruction"]):
        import trainables.tasks
    assert trainables.tasks.TASKS
    corpus, faults = folder / "corpus", Faults(folder / "faults")
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in file_seeds() if target == "files" else row_seeds():
        (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    with tempfile.TemporaryDirectory() as scratch:
        run = getattr(Targets(Path(scratch)), target)
        atheris.Setup(
            [
                sys.argv[0],
                str(corpus),
                f"-artifact_prefix={folder}/faults/",
                f"-max_len={LONGEST}",
                "-timeout=120",
                "-rss_limit_mb=6144",
                *options,
            ],
            lambda data: faults.attempt(run, data),
            custom_mutator=mutated_row if target == "rows" else None,
        )
        atheris.Fuzz()


def replay(target: str, files: list[str]) -> None:
    refused, inputs = 0, [Path(name) for name in files if not name.endswith(".txt")]
    with tempfile.TemporaryDirectory() as scratch:
        run = getattr(Targets(Path(scratch)), target)
        for path in inputs:
            try:
                run(path.read_bytes())
            except Exception as error:
                _let_pass(error)
                refused += 1
    print(f"{len(inputs)} inputs, {refused} refused")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("target", choices=("files", "rows"))
    parser.add_argument("folder", type=Path, nargs="?", help="where corpus and faults are written")
    parser.add_argument("--replay", nargs="+", help="inputs to read once")
    given, options = parser.parse_known_args()
    if given.replay:
        replay(given.target, given.replay)
    elif given.folder is None:
        parser.error("a folder is needed")
    else:
        fuzz(given.target, given.folder / given.target, options)


if __name__ == "__main__":
    main()
