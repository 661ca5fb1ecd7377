#!/usr/bin/env bash
# The same run on more and more ranks, one after the other, then a report of all.
#     [RANKS="2 3 6 11"] sbatch slurm/scaling.sh CONFIG [key=value ...]
# A requeued job leaves out what has finished.
#SBATCH --job-name=scaling
#SBATCH --nodes=3
#SBATCH --ntasks=11
#SBATCH --cpus-per-task=1
#SBATCH --time=1-00:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

source "${SLURM_SUBMIT_DIR:-.}/slurm/common.sh"
config=${1:?is missing: CONFIG, a run of configs/runs}
read -ra sizes <<<"${RANKS:-2 3 6 11}"
steps_per_start=$((${#sizes[@]} + 1))
enter_site
find_data "$config"

is_finished() {
  python -c 'import sys, fedgmr_hpc
sys.exit(fedgmr_hpc.read_result(sys.argv[1]).status != "finished")' "$1"
}

files=()
for ranks in "${sizes[@]}"; do
  if ((ranks > SLURM_NTASKS)); then
    echo "$ranks ranks: left out, the job has $SLURM_NTASKS tasks"
    continue
  fi
  files+=("$results-$ranks.h5")
  [[ -e ${files[-1]} ]] && is_finished "${files[-1]}" && continue
  code=0
  run_ranks "$ranks" --config "$config" "${words[@]}" results.path="${files[-1]}" "${@:2}" || code=$?
  ((code == 0)) || finish "$code"
done
python -m fedgmr_hpc report "${files[@]}" --out "$results"
