//go:build ignore

// Shows which credentials the kubelet uses. It reads JSON values
// {"Secrets": [{"Type", "Key", "Data"}], "Images": []} and writes a line for each: the user names
// and passwords that the kubelet's keyring finds for each image, in base64. This program generated
// kubelet-keyring.json. To build it, copy it beside the go.mod of
// tests/cluster/build/kubernetes/v1.36, which pins the kubelet's source.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/kubernetes/pkg/credentialprovider"
	"k8s.io/kubernetes/pkg/credentialprovider/secrets"
)

type secret struct {
	Type string
	Key  string
	Data []byte
}
type question struct {
	Secrets []secret
	Images  []string
}
type answer struct {
	Failed  bool          `json:"failed"`
	Matches [][][2][]byte `json:"matches"`
}

func main() {
	in := bufio.NewReaderSize(os.Stdin, 1<<20)
	out := bufio.NewWriter(os.Stdout)
	defer out.Flush()
	dec := json.NewDecoder(in)
	for {
		var q question
		if err := dec.Decode(&q); err != nil {
			return
		}
		var ss []v1.Secret
		for i, s := range q.Secrets {
			ss = append(ss, v1.Secret{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint(i), Namespace: "n"},
				Type: v1.SecretType(s.Type), Data: map[string][]byte{s.Key: s.Data}})
		}
		var a answer
		k, err := secrets.MakeDockerKeyring(ss, credentialprovider.UnionDockerKeyring{})
		if err != nil {
			a.Failed = true
		} else {
			for _, image := range q.Images {
				m := [][2][]byte{}
				found, _ := k.Lookup(image)
				for _, c := range found {
					m = append(m, [2][]byte{[]byte(c.Username), []byte(c.Password)})
				}
				a.Matches = append(a.Matches, m)
			}
		}
		b, _ := json.Marshal(a)
		out.Write(b)
		out.WriteByte('\n')
	}
}
