#!/bin/sh
# Makes the secrets that the manifests refer to, once: random, never printed, never in a file. Needs kubectl and openssl.
set -eu
random() { openssl rand -hex 24; }

if kubectl --namespace tood get secret tood-secrets >/dev/null 2>&1; then
    echo "tood-secrets exists; delete it first if all passwords shall change" >&2
    exit 1
fi
access=$(random) secret=$(random)
kubectl apply --filename - >/dev/null <<YAML
apiVersion: v1
kind: Secret
metadata: {name: tood-secrets, namespace: tood}
stringData:
  s3-access-key: $access
  s3-secret-key: $secret
  s3.json: '{"identities":[{"name":"tood","credentials":[{"accessKey":"$access","secretKey":"$secret"}],"actions":["Admin","Read","Write","List","Tagging"]}]}'
  mlflow-password: $(random)
  mlflow-cookie-key: $(random)
  postgres-password: $(random)
YAML
echo "tood-secrets made"
