package main

import (
	"encoding/json"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// targetGroup is an element of Prometheus' HTTP service discovery.
// https://prometheus.io/docs/prometheus/latest/http_sd/
type targetGroup struct {
	Targets []string          `json:"targets"`
	Labels  map[string]string `json:"labels"`
}

// newTargetsCommand makes the server that tells Prometheus which pods to scrape: those annotated with
// prometheus.io/scrape. Debian builds Prometheus without its own discovery of pods.
func newTargetsCommand() *cobra.Command {
	var kubeconfig, address string
	command := &cobra.Command{
		Use:           "pod-targets",
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(command *cobra.Command, _ []string) error {
			config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
			if err != nil {
				return err
			}
			client, err := kubernetes.NewForConfig(config)
			if err != nil {
				return err
			}
			factory := informers.NewSharedInformerFactory(client, time.Hour)
			pods := factory.Core().V1().Pods().Lister()
			factory.Start(command.Context().Done())
			http.HandleFunc("/targets", func(w http.ResponseWriter, _ *http.Request) {
				all, err := pods.List(labels.Everything())
				if err != nil {
					http.Error(w, err.Error(), http.StatusInternalServerError)
					return
				}
				w.Header().Set("Content-Type", "application/json")
				json.NewEncoder(w).Encode(targets(all))
			})
			return http.ListenAndServe(address, nil)
		},
	}
	command.Flags().StringVar(&kubeconfig, "kubeconfig", "", "who to list pods as")
	command.Flags().StringVar(&address, "address", "127.0.0.1:9099", "where to listen")
	return command
}

func targets(pods []*corev1.Pod) []targetGroup {
	groups := []targetGroup{}
	for _, pod := range pods {
		port := pod.Annotations["prometheus.io/port"]
		if pod.Annotations["prometheus.io/scrape"] != "true" || port == "" ||
			pod.Status.Phase != corev1.PodRunning || pod.Status.PodIP == "" {
			continue
		}
		path := pod.Annotations["prometheus.io/path"]
		if path == "" {
			path = "/metrics"
		}
		group := targetGroup{
			Targets: []string{net.JoinHostPort(pod.Status.PodIP, port)},
			Labels: map[string]string{
				"__metrics_path__": path,
				"namespace":        pod.Namespace,
				"pod":              pod.Name,
				"instance":         pod.Name,
			},
		}
		if name := pod.Labels["app.kubernetes.io/name"]; name != "" {
			group.Labels["job"] = name
		}
		for label, value := range pod.Labels {
			// A worker's pod says which TaskQueue it works for.
			if short, ours := strings.CutPrefix(label, "soloist.dev/"); ours {
				group.Labels[strings.NewReplacer("-", "_", ".", "_", "/", "_").Replace(short)] = value
			}
		}
		groups = append(groups, group)
	}
	return groups
}
