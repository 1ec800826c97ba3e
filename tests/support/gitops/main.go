// Judges objects as GitOps tools do, with the libraries that those use: kstatus (Flux, kpt, helm 4)
// and a health script run as Argo CD runs it (gopher-lua, with the base, package and table libraries
// only).
//
// On stdin {"health": SCRIPT, "objects": [OBJECT, ...]}; on stdout, for each object,
// {"kstatus": STATUS, "argocd": STATUS, "message": WHY}.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	lua "github.com/yuin/gopher-lua"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/cli-utils/pkg/kstatus/status"
)

type request struct {
	Health  string           `json:"health"`
	Objects []map[string]any `json:"objects"`
}

type verdict struct {
	Kstatus string `json:"kstatus"`
	Argocd  string `json:"argocd"`
	Message string `json:"message"`
}

func main() {
	if err := judgeAll(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func judgeAll() error {
	var asked request
	if err := json.NewDecoder(os.Stdin).Decode(&asked); err != nil {
		return err
	}
	verdicts := make([]verdict, 0, len(asked.Objects))
	for _, object := range asked.Objects {
		result, err := status.Compute(&unstructured.Unstructured{Object: whole(object).(map[string]any)})
		if err != nil {
			return err
		}
		judged := verdict{Kstatus: result.Status.String()}
		if judged.Argocd, judged.Message, err = health(asked.Health, object); err != nil {
			return err
		}
		verdicts = append(verdicts, judged)
	}
	return json.NewEncoder(os.Stdout).Encode(verdicts)
}

// health is what Argo CD says of object: deletion is its own business, the rest is the script's.
func health(script string, object map[string]any) (string, string, error) {
	if metadata, _ := object["metadata"].(map[string]any); metadata["deletionTimestamp"] != nil {
		return "Progressing", "Pending deletion", nil
	}
	state := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer state.Close()
	for name, open := range map[string]lua.LGFunction{
		lua.LoadLibName: lua.OpenPackage, lua.BaseLibName: lua.OpenBase, lua.TabLibName: lua.OpenTable,
	} {
		state.Push(state.NewFunction(open))
		state.Push(lua.LString(name))
		state.Call(1, 0)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	state.SetContext(ctx)
	state.SetGlobal("obj", asLua(state, object))
	if err := state.DoString(script); err != nil {
		return "", "", err
	}
	answer, isTable := state.Get(-1).(*lua.LTable)
	if !isTable {
		return "", "", fmt.Errorf("the script returned %s instead of a table", state.Get(-1).Type())
	}
	return answer.RawGetString("status").String(), answer.RawGetString("message").String(), nil
}

func asLua(state *lua.LState, value any) lua.LValue {
	switch value := value.(type) {
	case bool:
		return lua.LBool(value)
	case float64:
		return lua.LNumber(value)
	case string:
		return lua.LString(value)
	case []any:
		table := state.NewTable()
		for _, each := range value {
			table.Append(asLua(state, each))
		}
		return table
	case map[string]any:
		table := state.NewTable()
		for key, each := range value {
			table.RawSetString(key, asLua(state, each))
		}
		return table
	default:
		return lua.LNil
	}
}

// whole is value with numbers as Kubernetes reads them: whole ones are int64.
func whole(value any) any {
	switch value := value.(type) {
	case float64:
		if value == float64(int64(value)) {
			return int64(value)
		}
	case []any:
		read := make([]any, len(value))
		for index, each := range value {
			read[index] = whole(each)
		}
		return read
	case map[string]any:
		read := make(map[string]any, len(value))
		for key, each := range value {
			read[key] = whole(each)
		}
		return read
	}
	return value
}
