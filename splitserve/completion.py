"""`splitserve completion`: a bash completion script, made from the command table."""

import sys
from typing import Literal

from pydantic_settings import CliPositionalArg, SettingsConfigDict

from splitserve.settings import Settings

BASH = """\
_splitserve() {
    local words
    words=$(splitserve --complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
    COMPREPLY=($(compgen -W "$words" -- "${COMP_WORDS[COMP_CWORD]}"))
    [ ${#COMPREPLY[@]} -gt 0 ] || COMPREPLY=($(compgen -f -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -o filenames -F _splitserve splitserve
"""


class Options(Settings):
    """Print a completion script: eval "$(splitserve completion bash)"."""

    model_config = SettingsConfigDict(
        cli_prog_name="splitserve completion", env_prefix="SPLITSERVE_COMPLETION_"
    )

    shell: CliPositionalArg[Literal["bash"]] = "bash"
    """The shell."""


def run(options: Options) -> int:
    """Print the script."""
    sys.stdout.write({"bash": BASH}[options.shell])
    return 0
