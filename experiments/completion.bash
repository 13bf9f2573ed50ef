# Tab completion for bash: source experiments/completion.bash
#
# Completes python -m experiments.<script> --<flag> <value>, whichever python. A script is asked for
# its flags, which takes seconds, when it and its --space are completed for the first time.

_wpl_jax_spaces=$(cd "$(dirname "${BASH_SOURCE[0]}")/spaces" && pwd)

_wpl_jax_complete() {
  [[ ${COMP_WORDS[1]} == -m ]] || return
  local words=() word # bash takes --flag=value for three words, the second of which is =
  for word in "${COMP_WORDS[@]:0:COMP_CWORD+1}"; do
    [[ $word == = ]] || words+=("$word")
  done
  [[ $word == = ]] && words+=("")
  local COMP_WORDS=("${words[@]}") COMP_CWORD=$((${#words[@]} - 1))
  local python=${COMP_WORDS[0]} script=${COMP_WORDS[2]} word=${COMP_WORDS[COMP_CWORD]} i space=rnn
  if ((COMP_CWORD == 2)); then
    COMPREPLY=($(compgen -W "$(echo experiments.{search,search_many,train_final,train_many,rank,grid,two_models,importances,report})" -- "$script"))
    return
  fi
  [[ $script == experiments.* ]] || return
  for ((i = 3; i < COMP_CWORD - 1; i++)); do
    [[ ${COMP_WORDS[i]} == --space ]] && space=${COMP_WORDS[i + 1]}
  done
  case ${COMP_WORDS[COMP_CWORD - 1]} in
    --space) COMPREPLY=($(compgen -W "rnn micro_cnn nas_bench_201" -- "$word")); return ;;
    --preset) COMPREPLY=($(compgen -W "smoke cpu paper" -- "$word")); return ;;
    --architecture)
      local cells=$(cd "$_wpl_jax_spaces/$space/cells" 2>/dev/null && echo *.json)
      COMPREPLY=($(compgen -W "random ${cells//.json/}" -- "$word") $(compgen -f -- "$word"))
      return
      ;;
  esac

  if [[ $_wpl_jax_known != "$script $space" ]]; then
    complete() { :; } # what is read registers itself, for a command of another name
    source <("$python" -m "$script" --tyro-write-completion bash - --space "$space" 2>/dev/null ||
      "$python" -m "$script" --tyro-write-completion bash - 2>/dev/null)
    unset -f complete
    _wpl_jax_known="$script $space"
  fi
  local flags=_tyro_python__m_${script//./_}
  declare -F "$flags" >/dev/null || return
  COMP_WORDS=("$script" "${COMP_WORDS[@]:3}")
  COMP_CWORD=$((COMP_CWORD - 2))
  "$flags"
  [[ ${COMPREPLY[*]} ]] || COMPREPLY=() # where files are wanted, as bash completes them
}

complete -o default -F _wpl_jax_complete python python3
