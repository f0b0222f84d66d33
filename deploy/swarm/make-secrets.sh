#!/usr/bin/env bash
# Makes what deploy/swarm/stack.yaml names: secret and public keys, the first admin key, and the label
# of the node that keeps the auth worker's volume. Run it on a manager; a second run keeps what there
# is. Swarm shows nobody a secret again, so pairs can't be completed: all are made, or none.
set -euo pipefail
image=${PENSTOCK_IMAGE_PREFIX:-penstock}-setup:${PENSTOCK_TAG:-latest}
roles="gateway engine auth toolparser"
missing="" present=""
for name in penstock_admin_key $(printf 'penstock_%s_secret ' $roles); do
  if docker secret inspect "$name" >/dev/null 2>&1; then present+=" $name"; else missing+=" $name"; fi
done
for name in $(printf 'penstock_%s_public ' $roles); do
  if docker config inspect "$name" >/dev/null 2>&1; then present+=" $name"; else missing+=" $name"; fi
done
if [ -n "$missing" ] && [ -n "$present" ]; then
  {
    echo "Some of the keys are there and some are missing:$missing"
    echo "New pairs would not fit the old ones. Take the stack down, remove all of them, and run this again:"
    echo "  docker secret rm$(printf ' penstock_%s_secret' $roles) penstock_admin_key"
    echo "  docker config rm$(printf ' penstock_%s_public' $roles)"
  } >&2
  exit 1
fi
docker node update --label-add penstock.auth=true "$(docker info --format '{{.Swarm.NodeID}}')" >/dev/null
if [ -z "$missing" ]; then
  echo "Secrets and configs are there already; nothing is changed."
  exit 0
fi
container=$(docker create --network none "$image" \
  penstock keygen /keys --by-role --admin-key /admin/admin.key)
folder=$(mktemp -d)
trap 'rm -rf "$folder"; docker rm --force --volumes "$container" >/dev/null' EXIT
docker start --attach "$container" >/dev/null
docker cp "$container:/keys" "$folder/keys"
docker cp "$container:/admin/admin.key" "$folder/admin.key"
for role in $roles; do
  docker secret create "penstock_${role}_secret" "$folder/keys/$role/$role.secret" >/dev/null
  docker config create "penstock_${role}_public" "$folder/keys/$role/$role.public" >/dev/null
done
docker secret create penstock_admin_key "$folder/admin.key" >/dev/null
echo "Secrets, configs and the node's label are made."
