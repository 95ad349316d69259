package main

import (
	"encoding/json"
	"net/http"
	"os"
	"strings"
	"sync"

	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints/request"
)

// requestLog writes who asked for what, a JSON object a line, as rules of RBAC would name it. Tests hold a client's rules against it.
type requestLog struct {
	lock     sync.Mutex
	encoder  *json.Encoder
	resolver request.RequestInfoResolver
}

type requestLine struct {
	User        string `json:"user"`
	Verb        string `json:"verb"`
	Group       string `json:"group"`
	Version     string `json:"version"`
	Resource    string `json:"resource"`
	Subresource string `json:"subresource,omitempty"`
	Namespace   string `json:"namespace,omitempty"`
	Name        string `json:"name,omitempty"`
	// Path is set where no resource is asked for.
	Path  string `json:"path,omitempty"`
	Agent string `json:"agent"`
}

func openRequestLog(path string, resolver request.RequestInfoResolver) (*requestLog, error) {
	file, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	return &requestLog{encoder: json.NewEncoder(file), resolver: resolver}, nil
}

func (l *requestLog) wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if info, err := l.resolver.NewRequestInfo(r); err == nil {
			line := requestLine{
				User: userOf(r), Verb: info.Verb, Group: info.APIGroup, Version: info.APIVersion, Resource: info.Resource,
				Subresource: info.Subresource, Namespace: info.Namespace, Name: info.Name, Agent: r.UserAgent(),
			}
			if !info.IsResourceRequest {
				line.Path = r.URL.Path
			}
			l.lock.Lock()
			l.encoder.Encode(line)
			l.lock.Unlock()
		}
		next.ServeHTTP(w, r)
	})
}

// userOf takes the bearer token for the user's name. Nobody is refused: everybody may do everything here.
func userOf(r *http.Request) string {
	if token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); ok && token != "" {
		return token
	}
	return "nobody"
}

func authenticate(r *http.Request) (*authenticator.Response, bool, error) {
	groups := []string{user.SystemPrivilegedGroup, user.AllAuthenticated}
	return &authenticator.Response{User: &user.DefaultInfo{Name: userOf(r), Groups: groups}}, true, nil
}
