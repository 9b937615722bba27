"""Answer on the command line: help in our own words, and plain text where nobody sees colours."""

import shutil
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from colorama import colorama_text
from sacred import Experiment
from sacred.utils import convert_to_nested_dict, ensure_wellformed_argv

from lab.allowed import BACK, COUNTS, DENSITY, ELSEWHERE, FURTHER, ONLY, SAMPLING
from lab.architectures import NETWORK
from lab.folder import ROOT
from lab.own import in_every_folder
from lab.words import Option, configurations_of, options_of

PROGRAM = "experiments/run.py"
USAGE = f"""Usage:
  {PROGRAM} [COMMAND] [with [CONFIGURATION ...] [OPTION=VALUE ...]]
  {PROGRAM} help [COMMAND]"""
HELP = {"-h", "--help"}


class Program(Experiment):
    """Sacred's experiment, repaired: its help begins with our own commands and options, and it names itself in every answer.

    `said_in` is the file that holds the options, each with its comment.
    """

    said_in: str

    def run_commandline(self, argv=None):
        """Colours are left out where the output is no terminal, and COMMAND --help is help COMMAND."""
        program, *words = ensure_wellformed_argv(argv)
        if HELP & {*words}:
            words = ["help", *[word for word in words if word in self.commands][:1]]
        if words and (words[0] in self.named_configs or ("=" in words[0].lstrip("-") and not words[0].startswith("-"))):
            raise SystemExit(f"Options follow the word `with`: {PROGRAM} with {' '.join(words)}")
        with colorama_text():
            return super().run_commandline([program, *words])

    def run(self, command_name=None, config_updates=None, *args, **kwargs):
        """Files that the user names are found again from every folder. Sacred lets no config hook change what the user wrote."""
        return super().run(command_name, in_every_folder(convert_to_nested_dict(config_updates or {})), *args, **kwargs)

    def get_usage(self, program_name=None):
        """The short usage, the help, and the text that the command line is parsed by, in which Sacred calls the program "dummy"."""
        short, long, _ = super().get_usage(ROOT / PROGRAM)
        flags = long.partition("\nOptions:\n")[2].partition("\nArguments:\n")[0]
        return short, f"{self._help()}\n\nFlags, in front of the word `with`:\n{flags}", long

    def _handle_help(self, args, usage):
        """Sacred's own shows how a command is written in Python in place of its options."""
        if (args["help"] or args["--help"]) and args["COMMAND"]:
            print(self._help_for(args["COMMAND"]))
            return True
        return super()._handle_help(args, usage)

    def _help(self) -> str:
        # ours first, in the order of the examples
        place = {name: (does.__module__.startswith("sacred."), self.doc.find(f"{PROGRAM} {name} ")) for name, does in self.commands.items()}
        ours_first = sorted(self.commands.items(), key=lambda named: place[named[0]])
        commands = {name: _first_line(command) for name, command in ours_first}
        commands[self.default_command] += " This is what runs without a COMMAND."
        parts = [USAGE, self.doc.strip(), _table("Commands", commands.items())]
        parts += [_table("Configurations, which set several options at once", configurations_of(self._source()).items())]
        return "\n\n".join([*parts, *_sections(self._options())])

    def _help_for(self, command: str) -> str:
        does = self.commands[command]
        parts = [f"Usage:\n  {PROGRAM} {command} [with [CONFIGURATION ...] [OPTION=VALUE ...]]", _first_line(does)]
        if examples := [f"  {line}" for line in self.doc.splitlines() if f"{PROGRAM} {command} with" in line]:
            parts.append("\n".join(["Example:", *examples]))
        if command not in FURTHER:
            return "\n\n".join([*parts, f"It takes all options but checkpoint. {PROGRAM} help lists them."])
        of_a_network, back = NETWORK if command in ELSEWHERE else (), command == "density"
        its_own = [name for name, commands in ONLY.items() if command in commands]
        names = {"checkpoint", *of_a_network, *its_own, *(DENSITY if back else SAMPLING), "device", "cache"} - ({*ONLY} - {*its_own})
        own = dict.fromkeys(NETWORK, "the flow's own") | ({**BACK, "count": COUNTS[command]} if back else {})
        served = [option for option in self._options() if {option.name, option.name.partition(".")[0]} & names]
        served = [replace(option, default=str(own.get(option.name, option.default))) for option in served]
        return "\n\n".join([*parts, *_sections(served)])

    def _options(self) -> list[Option]:
        return options_of(self._source(), self.configurations[0]())

    def _source(self) -> str:
        return Path(self.said_in).read_text(encoding="utf-8")


def _first_line(command) -> str:
    return (command.__doc__ or "").strip().partition("\n")[0]


def _sections(options: list[Option]) -> Iterator[str]:
    """A table for each section of the options."""
    for section in dict.fromkeys(option.section for option in options):
        yield _table(section, [(option.name, _described(option)) for option in options if option.section == section])


def _described(option: Option) -> str:
    return f"{option.meaning}. Default: {option.default}. Values: {option.values}."


def _table(title: str, rows: Iterable[tuple[str, str]]) -> str:
    """Names with what is said of them, in the width of the terminal; the backticks of Markdown are left out."""
    rows, width = list(rows), min(shutil.get_terminal_size((100, 24)).columns, 120)
    column = max(len(name) for name, _ in rows) + 4
    plain = ((name, words.replace("`", "")) for name, words in rows)
    said = [textwrap.fill(words, width, initial_indent=f"  {name}".ljust(column), subsequent_indent=" " * column) for name, words in plain]
    return "\n".join([f"{title}:", *said])
