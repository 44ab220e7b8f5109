#!/usr/bin/env bash
# Serves tables from the first node of a job, and queries them from all other nodes by RDMA:
#   sbatch docs/slurm-example.sh /scratch/tables 'SELECT count(*) FROM lineitem'
# Locked memory must be unlimited on the nodes: PropagateResourceLimitsExcept=MEMLOCK in slurm.conf, and
# LimitMEMLOCK=infinity in the unit of slurmd.
#SBATCH --job-name=thallus
#SBATCH --nodes=3
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=00:30:00
set -euo pipefail
tables=${1:?directory of tables, on a file system that the first node sees}
sql=${2:?query}

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
server=${nodes[0]}
printf -v clients ',%s' "${nodes[@]:1}"
clients=${clients#,}
[ -n "$clients" ] || { echo "the job needs two nodes or more" >&2; exit 1; }

srun --overlap --nodes=1 --ntasks=1 --nodelist="$server" bash -c 'echo "locked memory: $(ulimit -l)"'
srun --overlap --nodes=1 --ntasks=1 --nodelist="$server" \
    thallus-server --listen 0.0.0.0:7807 --data "$tables" --fabric verbs &
trap 'kill %1 2>/dev/null || true; wait' EXIT

url="thallus://$server:7807?require_fabric=true"
for _ in $(seq 60); do
    ready=$(srun --overlap --nodes=1 --ntasks=1 --nodelist="${nodes[1]}" thallus ping "$url" 2>&1) && break
    sleep 1
done
echo "$ready"

# One client on each of the other nodes, each with its own output file.
srun --overlap --nodes="$((${#nodes[@]} - 1))" --ntasks-per-node=1 --nodelist="$clients" \
    bash -c 'thallus query "$1" "$2" --stats --output "result-$SLURM_PROCID.parquet"' thallus "$url" "$sql"
