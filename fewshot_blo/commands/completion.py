"""A script for a shell that completes commands and options."""

from __future__ import annotations

from collections.abc import Sequence

from fewshot_blo.commands.running import options_of

_SCRIPT = """_fewshot_blo() {
  local words
  case "${COMP_WORDS[1]}" in
%s
    *) words="%s" ;;
  esac
  local current="${COMP_WORDS[COMP_CWORD]}"
  if [ "$COMP_CWORD" -le 1 ]; then words="%s"; fi
  COMPREPLY=($(compgen -W "$words" -- "$current"))
  if [ "${current#--}" = "$current" ] && [ "$COMP_CWORD" -gt 1 ]; then
    COMPREPLY+=($(compgen -f -- "$current"))
  fi
}
complete -o filenames -F _fewshot_blo fewshot-blo"""


def script(shell: str, commands: Sequence[str]) -> str:
    """For bash or zsh, to be read by the shell at its start."""
    cases = []
    for command in commands:
        options = options_of(command)
        words = " ".join(f"--{name}" for name in options.names())
        cases.append(f'    {command}) words="{words} --help" ;;')
    all_commands = " ".join((*commands, "--help", "--version"))
    text = _SCRIPT % ("\n".join(cases), all_commands, all_commands)
    return f"autoload -U +X bashcompinit && bashcompinit\n{text}" if shell == "zsh" else text
