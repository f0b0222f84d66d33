#!/usr/bin/env bash
# Makes what deploy/swarm/stack.yaml names: secret and public keys, the first admin key, and the label
# of the node that keeps the auth worker's volume. Run it once, on a manager.
set -euo pipefail
image=${PENSTOCK_IMAGE_PREFIX:-penstock}-setup
container=$(docker create --network none "$image" \
  penstock keygen /keys --by-role --admin-key /admin/admin.key)
folder=$(mktemp -d)
trap 'rm -rf "$folder"; docker rm --force --volumes "$container" >/dev/null' EXIT
docker start --attach "$container" >/dev/null
docker cp "$container:/keys" "$folder/keys"
docker cp "$container:/admin/admin.key" "$folder/admin.key"
for role in gateway engine auth toolparser; do
  docker secret create "penstock_${role}_secret" "$folder/keys/$role/$role.secret" >/dev/null
  docker config create "penstock_${role}_public" "$folder/keys/$role/$role.public" >/dev/null
done
docker secret create penstock_admin_key "$folder/admin.key" >/dev/null
docker node update --label-add penstock.auth=true "$(docker info --format '{{.Swarm.NodeID}}')" >/dev/null
echo "Secrets, configs and the node's label are made."
