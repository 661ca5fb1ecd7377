# Sourced by the job scripts. The site's facts come from the environment: docs/clusters.md.
set -euo pipefail

refuse() { # refuse LINE: wrong input ends the job, and it is not requeued
  echo "$1" >&2
  exit 2
}

[[ -n ${SLURM_JOB_ID:-} ]] ||
  refuse "SLURM_JOB_ID: not set: submit this script with sbatch, or run it inside salloc --ntasks=N"
[[ -n ${SLURM_NTASKS:-} ]] ||
  refuse "SLURM_NTASKS: not set: give sbatch or salloc the number of ranks, --ntasks=N"
readonly CHECKPOINTED=75 # launch ended early with its state on disk
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID} # the same after a requeue
scripts=$(dirname "${BASH_SOURCE[0]}")
results=${FEDGMR_RESULTS:-results}/$SLURM_JOB_NAME-$job
flag=$results.checkpointed # see rank.sh
repeat_s=5 # between the times that ranks are told to checkpoint

unset SLURM_NTASKS_PER_NODE # the most that a node takes, of which srun would complain at each start

# Slurm may send the signal at once where the limit is hardly longer than its lead. TERM is left to
# end the script: it comes with scancel, after which nothing may be requeued; ranks checkpoint at it.
trap 'echo "job $job: told to end before the ranks were started: needs more time" >&2; exit 1' \
  USR1 USR2

enter_site() { # modules, Python, one thread a rank, where torch.distributed meets
  [[ -z ${FEDGMR_VENV:-} || -x $FEDGMR_VENV/bin/python ]] ||
    refuse "FEDGMR_VENV must be a folder with bin/python (got $FEDGMR_VENV)"
  # or each srun repeats the job's own --export, NONE at some sites, and drops all that follows
  export SLURM_EXPORT_ENV=ALL
  [[ -z ${FEDGMR_MODULES:-} ]] || load_modules
  find_python
  export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
  local nodes
  mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
  export MASTER_ADDR=${FEDGMR_MASTER_ADDR:-${nodes[0]}}
  # nobody's guess, and below the ports that Linux gives away
  export MASTER_PORT=$((20000 + $(od -A n -N 4 -t u4 /dev/urandom) % 12000))
  export FEDGMR_MPI=${FEDGMR_MPI:-auto}
  [[ $FEDGMR_MPI != auto ]] || FEDGMR_MPI=$(choose_mpi) || exit # it has said why
  # MPICH names its shared memory after job and step number, which begin anew after a requeue: what
  # ranks of an earlier start left when they were killed would hang this one. So skip their numbers.
  for ((i = 0; i < ${steps_per_start:-2} * ${SLURM_RESTART_COUNT:-0}; i++)); do
    srun --nodes=1 --ntasks=1 --mpi=none true
  done
  local commit
  commit=$(git -C "$scripts" describe --always --dirty 2>/dev/null) || commit=unknown
  echo "job $job on $SLURM_JOB_NODELIST, $(date '+%F %T %z'), commit $commit," \
    "$(type -P python), start $((${SLURM_RESTART_COUNT:-0} + 1)): mpi $FEDGMR_MPI"
  warn_if_lopsided
}

load_modules() { # those of FEDGMR_MODULES; the site's scripts are not written for -euo pipefail
  local name
  set +euo pipefail
  declare -F module >/dev/null || source /etc/profile
  declare -F module >/dev/null ||
    refuse "modules: must be left out where /etc/profile defines no module (got $FEDGMR_MODULES)"
  for name in $FEDGMR_MODULES; do
    module load "$name" || refuse "modules: must be modules that load here (got $name)"
  done
  set -euo pipefail
}

warn_if_lopsided() { # Slurm fills the first nodes where nobody says how many tasks a node may have
  local nodes=$SLURM_JOB_NUM_NODES tasks=${SLURM_TASKS_PER_NODE:-} part least=$SLURM_NTASKS
  for part in ${tasks//,/ }; do # 9,1(x2)
    part=${part%%(*}
    ((part >= least)) || least=$part
  done
  ((least < SLURM_NTASKS / nodes)) || return 0
  echo "warning: job $job: its nodes have $tasks tasks: add" \
    "--ntasks-per-node=$(((SLURM_NTASKS + nodes - 1) / nodes)) to share them out" >&2
}

find_python() { # first on PATH: the site's, else the one there, else what `make` has built
  local built=${SLURM_SUBMIT_DIR:-.}/.venv why
  export PATH=${FEDGMR_VENV:+$FEDGMR_VENV/bin:}$PATH
  why=$(try_python) && return
  if [[ -z ${FEDGMR_VENV:-} && -x $built/bin/python ]]; then
    PATH=$built/bin:$PATH
    why=$(try_python) && return
  fi
  refuse "python: $(type -P python || echo '(none on PATH)') cannot import fedgmr_hpc ($why):\
 set FEDGMR_VENV, or the site's venv, to the environment that can"
}

try_python() { python -c 'import fedgmr_hpc.runtime.rank_process' 2>&1 | tail -n 1; }

choose_mpi() { # the srun plugin for mpi4py's library, else mpirun; torch where there is no mpi4py
  local said plugin=pmi2
  local code='import mpi4py; mpi4py.rc.initialize = False
from mpi4py import MPI; print(MPI.Get_library_version().rstrip("\0"))'
  python -c 'import mpi4py' 2>/dev/null || { echo torch; return; }
  said=$(python -c "$code" 2>&1) || refuse "mpi: got auto, but mpi4py finds no MPI\
 (${said##*$'\n'}): load the site's module for it (modules), or say mpi: torch to do without"
  case $said in
    *CRAY*) plugin=cray_shasta ;; # calls itself CRAY MPICH
    *"Open MPI"*) plugin=pmix ;;
  esac
  if srun --mpi=list 2>&1 | grep -w "$plugin" >/dev/null; then
    echo "$plugin"
  elif command -v mpirun >/dev/null; then
    echo mpirun
  else
    refuse "mpi: got auto, but srun has no plugin $plugin and there is no mpirun on PATH:\
 load the MPI of mpi4py (modules), or say mpi: torch to do without"
  fi
}

find_data() { # find_data CONFIG WORD...: words=(...): where its files are, for launch
  local folder scratch=${FEDGMR_SCRATCH:-}
  words=()
  case $1 in
    femnist*) folder=femnist ;;
    cifar10*) folder=cifar-10-batches-bin ;;
    imagenet100*) # 11 GB are nothing for a home folder
      folder=imagenet100
      [[ -n $scratch || ! -d ${SLURM_TMPDIR:-${TMPDIR:-}} ]] || scratch=${SLURM_TMPDIR:-$TMPDIR} ;;
    stackoverflow*) folder=stackoverflow ;;
    *) return 0 ;;
  esac
  [[ -z $scratch || " $* " == *" data.cache="* ]] || words+=("data.cache=$scratch/fedgmr_hpc")
  [[ " $* " != *" data.root="* ]] || return 0
  [[ -n ${FEDGMR_DATA:-} && -d $FEDGMR_DATA/$folder ]] ||
    refuse "FEDGMR_DATA must be the folder that holds $folder/ (got '${FEDGMR_DATA:-}')"
  words+=("data.root=$FEDGMR_DATA/$folder")
}

start_ranks() { # start_ranks NUM WORD...: launch with these words, in the background
  local ranks=$1 num_nodes=$((SLURM_JOB_NUM_NODES < $1 ? SLURM_JOB_NUM_NODES : $1))
  shift
  local run=("$scripts/rank.sh" "$flag" python -m fedgmr_hpc.launch "$@")
  # Ranks see all GPUs of their node, and take one each. With --gpus-per-task of sbatch each sees one
  # only, its cuda:0. No --gpu-bind=none: with it Slurm 22.05 shows none to several ranks of a node.
  local step=(srun --nodes="$num_nodes" --kill-on-bad-exit=1)
  local tasks=(--ntasks="$ranks" --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}")
  case $FEDGMR_MPI in
    mpirun) # would fill a node with as many ranks as it may have
      local more
      read -ra more <<<"${FEDGMR_MPIRUN_ARGS:-}"
      SLURM_TASKS_PER_NODE=$(deal_out "$ranks") mpirun -n "$ranks" "${more[@]}" "${run[@]}" & ;;
    torch) "${step[@]}" "${tasks[@]}" --mpi=none "${run[@]}" & ;;
    torchrun) # one for each node, with all the CPUs that the job has there
      "${step[@]}" --ntasks="$num_nodes" --cpu-bind=none --mpi=none \
        "$scripts/node.sh" "$ranks" "${run[@]}" & ;;
    *) "${step[@]}" "${tasks[@]}" --mpi="$FEDGMR_MPI" "${run[@]}" & ;;
  esac
  launcher=$!
}

deal_out() { # deal_out NUM: tasks of each node, in Slurm's words, as srun deals them: 4(x2),3(x1)
  local nodes=$SLURM_JOB_NUM_NODES
  local each=$(($1 / nodes)) more=$(($1 % nodes))
  ((more == 0)) || echo -n "$((each + 1))(x$more),"
  echo "$((each ? each : 1))(x$((nodes - more)))"
}

tell_launcher() { kill -USR2 "$launcher"; }

tell_ranks() { # Slurm's USR1 becomes USR2 of the ranks: NCCL may take USR1 for itself
  case $FEDGMR_MPI in
    mpirun | torchrun) # would die of it or keep it for themselves
      srun --overlap --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --mpi=none \
        bash -c '
        for pid in $(scontrol listpids "$SLURM_JOB_ID" "$SLURMD_NODENAME" | tail -n +2 |
            cut -d " " -f 1); do
          if [[ $(cat /proc/$pid/comm 2>/dev/null) == python* ]]; then kill -USR2 "$pid"; fi
        done' ;;
    *) tell_launcher ;;
  esac
}

await_launcher() { # await_launcher TELL: its exit code; TELL passes a signal on, again and again,
  local code tell=$1 teller= # since what is still starting does not listen
  trap 'signalled=yes' USR1 USR2
  while :; do # a signal ends `wait` early, with a code above 128
    signalled=
    code=0
    wait "$launcher" || code=$?
    [[ -n $signalled ]] && ((code > 128)) || break
    [[ -z $teller ]] || continue
    "$tell"
    echo "job $job: time is nearly over, told to checkpoint"
    while sleep "$repeat_s"; do "$tell"; done &
    teller=$!
  done
  [[ -z $teller ]] || kill "$teller"
  return "$code"
}

check_results() { # check_results WORD...: files can be made where the results go
  local word folder
  folder=$(dirname "$results")
  for word in "$@"; do
    [[ $word == results.path=* ]] || continue
    word=${word#results.path=}
    [[ $word != "~/"* ]] || word=$HOME/${word#"~/"} # which Python expands, and the shell has not
    folder=$(dirname "$word")
  done
  for folder in "$folder" "$(dirname "$flag")"; do
    mkdir -p "$folder" 2>/dev/null && (: >"$folder/.job-$job") 2>/dev/null ||
      refuse "results.path must lie in a folder that can be written (got $folder)"
    rm -f "$folder/.job-$job"
  done
}

run_ranks() { # run_ranks NUM WORD...: to the end; 75 where a rank says so, else the launcher's code
  local code=0
  mkdir -p "$(dirname "$flag")"
  rm -f "$flag"
  start_ranks "$@"
  await_launcher tell_ranks || code=$?
  ((code != 0)) || [[ ! -e $flag ]] || code=$CHECKPOINTED
  rm -f "$flag"
  return "$code"
}

finish() { # finish CODE: requeue a job that has checkpointed, so that it goes on; else end it
  local code=$1 starts=$((${SLURM_RESTART_COUNT:-0})) most=${FEDGMR_MAX_REQUEUES:-20}
  ((code == CHECKPOINTED)) || exit "$code"
  if ((starts >= most)); then
    echo "job $job: checkpointed, but requeued $starts times already (max_requeues); not again" >&2
  else
    echo "job $job: checkpointed, requeued"
    scontrol requeue "$job"
  fi
  exit "$code"
}

run_job() { # run_job CONFIG WORD...: one training on all tasks of the job
  local config=$1 code=0
  shift
  find_data "$config" "$@"
  check_results "$@"
  enter_site
  [[ " $* " == *" results.path="* ]] || words+=(results.path="$results.h5")
  words=(--config "$config" --resume "${words[@]}" "$@")
  echo "launch ${words[*]}"
  run_ranks "$SLURM_NTASKS" "${words[@]}" || code=$?
  finish "$code"
}

run_scale() { # run_scale KIND CONFIG WORD...: a scaling study, which starts ranks itself
  local code=0
  find_data "${@:2}"
  check_results
  steps_per_start=32 # runs of a start that may be killed; see enter_site
  enter_site
  words=("${@:1:2}" "${words[@]}" "${@:3}" --out "$results")
  echo "scale ${words[*]}"
  (trap '' USR2 && exec python -m fedgmr_hpc scale "${words[@]}") &
  launcher=$!
  await_launcher tell_launcher || code=$?
  finish "$code"
}
