# SPDX-License-Identifier: MIT
# Completion of loractl: verbs and options as --help lists them, adapter names as `loractl list` does.

_loractl_options() # [VERB]
{
	loractl "$@" --help 2>/dev/null | sed -n 's/^  *\(-[a-z],\)\{0,1\} *\(--[a-z-]*\).*/\2/p'
}

_loractl_verbs()
{
	loractl --help 2>/dev/null | sed -n '/^Verbs/,/^$/s/^  \([a-z][a-z]*\) .*/\1/p'
}

_loractl_names() # [--socket PATH]
{
	loractl list "$@" 2>/dev/null | sed -n '2,$s/ .*//p'
}

_loractl()
{
	local cur prev words cword verb='' i socket=()
	_init_completion -n : || return

	for ((i = 1; i < cword; i++)); do
		case ${words[i]} in
		--socket) socket=(--socket "${words[++i]}") ;;
		--socket=*) socket=("${words[i]}") ;;
		-*) ;;
		*) [[ $verb ]] || verb=${words[i]} ;;
		esac
	done
	case $prev in
	--socket | --prompt-file) _filedir; return ;;
	--adapter) mapfile -t COMPREPLY < <(compgen -W "$(_loractl_names "${socket[@]}")" -- "$cur"); return ;;
	--name | --prompt | --tokens | -n | --temperature | --top-p | --top-k | --min-p | --repetition-penalty | --seed | \
		--stop | --logprobs | --first-token-ms | --deadline-ms | --rate | --interval) return ;;
	esac
	if [[ $cur == -* ]]; then
		mapfile -t COMPREPLY < <(compgen -W "$(_loractl_options ${verb:+"$verb"})" -- "$cur")
		return
	fi
	case $verb in
	'') mapfile -t COMPREPLY < <(compgen -W "$(_loractl_verbs)" -- "$cur") ;;
	import) _filedir -d ;;
	export)
		if [[ $prev == export ]]; then
			mapfile -t COMPREPLY < <(compgen -W "$(_loractl_names "${socket[@]}")" -- "$cur")
		else
			_filedir -d
		fi
		;;
	show | verify | remove | pin | unpin | prefetch)
		mapfile -t COMPREPLY < <(compgen -W "$(_loractl_names "${socket[@]}")" -- "$cur")
		;;
	esac
} && complete -F _loractl loractl
